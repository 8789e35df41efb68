"""The machine code of both makers as instructions: names, pipes, accesses and their widths, and where each goes on."""

import pytest

from tests.benchmarks.test_controlflow import WIDE, nvidia, opcodes
from tests.benchmarks.test_controlflow_amd import amd
from vae_fast.benchmarks.controlflow import main_path


def test_reads_guards_operands_and_padding():
    code = nvidia(
        "@!P5 LDG.E.U16 R4, desc[UR6][R2.64]",
        "MUFU.EX2 R1, R1",
        "UIADD3 UR4, UR4, 0x1, URZ",
        "EXIT",
        "BRA 0x40",
        "NOP",
    )
    assert [(i.opcode, i.pipe, i.access, i.bits) for i in code] == [
        ("LDG.E.U16", "memory", "load", 16),
        ("MUFU.EX2", "special", "", 0),
        ("UIADD3", "uniform", "", 0),
        ("EXIT", "control", "", 0),
    ]
    assert code[0].text == "@!P5 LDG.E.U16 R4, desc[UR6][R2.64]"


def test_addresses_may_have_more_than_four_digits():
    assert len(nvidia(*["FADD R1, R1, R1"] * 4096, "EXIT")) == 4097


def test_what_stands_behind_the_kernels_section_is_none_of_it():
    assert len(amd("s_endpgm\n.section .rodata\nv_add_f32_e32 v0, v0, v0")) == 1


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("LDG.E.128.CONSTANT", 128),
        ("LDG.E.LTC128B.64", 64),
        ("LDG.E.ENL2.256", 256),
        ("LDG.E", 32),
        ("LDG.E.S8", 8),
        ("LDG.E.U8", 8),
        ("LDG.E.S16", 16),
        ("LDGSTS.E.BYPASS.128", 128),
    ],
)
def test_widths(opcode, bits):
    assert nvidia(f"{opcode} R4, desc[UR6][R2.64]", "EXIT")[0].bits == bits


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("global_load_dwordx4", 128),
        ("buffer_load_ushort", 16),
        ("global_load_sshort", 16),
        ("global_load_short_d16", 16),
        ("global_load_dword", 32),
        ("buffer_store_byte", 8),
        ("global_load_ubyte", 8),
        ("global_load_sbyte", 8),
        ("global_load_dwordx2", 64),
        ("global_load_dwordx3", 96),
        ("global_atomic_add_x2", 64),
    ],
)
def test_widths_on_amd(opcode, bits):
    assert amd(f"{opcode} v1, v2, s[0:1]\ns_endpgm")[0].bits == bits


@pytest.mark.parametrize(
    ("code", "access"),
    [
        (nvidia("LD.E.64 R4, [R2.64]", "EXIT"), "load"),
        (nvidia("ST.E.64 [R2.64], R4", "EXIT"), "store"),
        (nvidia("ATOM.E.ADD.64 PT, R4, [R2.64], R6", "EXIT"), "atomic"),
        (nvidia("ATOMG.E.ADD.64 PT, R4, [R2.64], R6", "EXIT"), "atomic"),
        (nvidia("RED.E.ADD.64 [R2.64], R4", "EXIT"), "atomic"),
        (nvidia("REDG.E.ADD.64 [R2.64], R4", "EXIT"), "atomic"),
        (amd("flat_load_dwordx2 v[0:1], v[2:3]\ns_endpgm"), "load"),
        (amd("flat_store_dwordx2 v[0:1], v[2:3]\ns_endpgm"), "store"),
        (amd("flat_atomic_add_x2 v[0:1], v[2:3]\ns_endpgm"), "atomic"),
    ],
)
def test_accesses(code, access):
    assert (code[0].access, code[0].bits) == (access, 64)


@pytest.mark.parametrize(
    ("opcode", "pipe"),
    [
        *((f"v_{name}_f32_e32", "special") for name in ("exp", "log", "rcp", "rcp_iflag", "rsq", "sqrt", "sin", "cos")),
        *((f"s_{name}", "control") for name in ("waitcnt", "nop", "barrier", "sleep", "setprio", "sethalt", "trap")),
        ("s_add_u32", "uniform"),
        ("ds_read_b32", "memory"),
        ("v_mfma_f32_32x32x8_f16", "matrix"),
        ("v_smfmac_f32_16x16x32_f16", "matrix"),
        ("v_mul_lo_u32", "multiply"),
        ("v_mul_lo_u16_e32", "multiply"),  # of a width that the other products lack
        ("v_mul_u32_u24_e32", "multiply"),
        ("v_mad_u64_u32", "multiply"),
        ("v_cmpx_gt_f32_e32", "integer"),  # as a comparison, though of floats
        ("v_pk_max_f16", "integer"),
        ("v_add_u32_e32", "integer"),
        ("v_fma_f32", "float"),  # nothing behind its type
        ("v_mul_f32_e32", "float"),
        ("v_cvt_pk_u16_u32", "float"),  # a conversion, though of integers
        ("v_ldexp_f32", "float"),
    ],
)
def test_pipes_on_amd(opcode, pipe):
    assert amd(f"{opcode} v0, v1, v2\ns_endpgm")[0].pipe == pipe


@pytest.mark.parametrize("end", ["EXIT", "RET.REL.NODEC R2", "BRX R2 -0x10", "JMX R2", "KILL"])
def test_ends(end):
    """Each, unless it is guarded by a condition: PT holds always."""
    first = end.split()[0]
    assert opcodes(nvidia(end, WIDE, "EXIT")) == opcodes(nvidia(f"@PT {end}", WIDE, "EXIT")) == [first]
    assert opcodes(nvidia(f"@P0 {end}", WIDE, "EXIT")) == [first, "LDG.E.128", "EXIT"]


@pytest.mark.parametrize("jump", ["BRA", "JMP"])
def test_jumps(jump):
    assert opcodes(nvidia(f"{jump} 0x20", "EXIT", WIDE, "EXIT")) == [jump, "LDG.E.128", "EXIT"]


@pytest.mark.parametrize("end", ["s_endpgm", "s_setpc_b64 s[30:31]"])
def test_ends_on_amd(end):
    assert opcodes(amd(f"{end}\nglobal_load_dword v0, v1, s[0:1]\ns_endpgm")) == [end.split()[0]]


def test_the_end_of_a_barrier_goes_where_its_start_said():
    code = nvidia("BSSY B0, 0x30", "@P0 BRA 0x50", "BSYNC B0", "FADD R1, R1, R1", "EXIT", WIDE, "BSYNC B0", "EXIT")
    assert opcodes(code) == ["BSSY", "BRA", "LDG.E.128", "BSYNC", "FADD", "EXIT"]


@pytest.mark.parametrize("subroutine", [["FMUL R1, R1, R1"], ["BRA 0xb0", "EXIT"]], ids=["straight", "branching"])
def test_a_jump_is_told_from_a_call_by_its_return(subroutine):
    """The code that a jump goes to ends before the subroutine, which stands behind it."""
    jump = ["@P1 CALL.REL.NOINC 0x60", "CALL.REL.NOINC 0x40", "EXIT", "EXIT", "FADD R1, R1, R1", "EXIT"]
    code = nvidia(*jump, "CALL.REL.NOINC 0x90", "FADD R1, R1, R1", "EXIT", *subroutine, "RET R2", "RET R2")
    assert [i.call for i in code if i.opcode.startswith("CALL")] == [False, False, True]
    assert [i.opcode for i in main_path(code).instructions] == ["CALL.REL.NOINC"] * 2 + ["FADD", "EXIT"]
