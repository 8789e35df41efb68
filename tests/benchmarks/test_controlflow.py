"""The main path, on machine code written by hand: what compilers rarely emit, and must not mislead the counts."""

import pytest

from vae_fast.benchmarks import gcn, sass
from vae_fast.benchmarks.controlflow import main_path


def nvidia(*lines):
    return sass.parse("\n".join(f"        /*{16 * n:04x}*/      {line} ;    /* 0x0 */" for n, line in enumerate(lines)))


def amd(text):
    return gcn.parse("\n".join(line if line.startswith(".L") else f"\t{line}" for line in text.split("\n")))


def opcodes(instructions):
    return [i.opcode for i in main_path(instructions).instructions]


def test_reads_guards_operands_and_padding():
    code = nvidia(
        "@!P5 LDG.E.U16 R4, desc[UR6][R2.64]", "MUFU.EX2 R1, R1", "UIADD3 UR4, UR4, 0x1, URZ", "EXIT", "BRA 0x40"
    )
    assert [(i.opcode, i.pipe, i.access, i.bits) for i in code] == [
        ("LDG.E.U16", "memory", "load", 16),
        ("MUFU.EX2", "special", "", 0),
        ("UIADD3", "uniform", "", 0),
        ("EXIT", "control", "", 0),
    ]
    assert code[0].text == "@!P5 LDG.E.U16 R4, desc[UR6][R2.64]"


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("LDG.E.128.CONSTANT", 128),
        ("LDG.E.LTC128B.64", 64),
        ("LDG.E.ENL2.256", 256),
        ("LDG.E", 32),
        ("LDG.E.S8", 8),
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
        ("global_load_short_d16", 16),
        ("global_load_dword", 32),
        ("buffer_store_byte", 8),
        ("global_load_dwordx2", 64),
        ("global_load_dwordx3", 96),
    ],
)
def test_widths_on_amd(opcode, bits):
    assert amd(f"{opcode} v1, v2, s[0:1]\ns_endpgm")[0].bits == bits


def test_full_tiles_win_over_the_tail_and_over_an_early_exit():
    wide, narrow = "LDG.E.128 R4, desc[UR6][R2.64]", "@P1 LDG.E.U16 R4, desc[UR6][R2.64]"
    code = nvidia("@P2 EXIT", "@P0 BRA 0x50", wide, "FADD R1, R1, R1", "EXIT", *[narrow] * 8, "FMUL R1, R1, R1", "EXIT")
    assert opcodes(code) == ["EXIT", "BRA", "LDG.E.128", "FADD", "EXIT"]


@pytest.mark.parametrize("branch", ["BRA P0, 0x30", "BRA.U UP0, 0x30", "BRA !P0, 0x30", "@!UP0 BRA 0x30"])
def test_conditions_of_a_branch(branch):
    wide = "LDG.E.128 R4, desc[UR6][R2.64]"
    main = opcodes(nvidia(branch, wide, "EXIT", "NANOSLEEP 0x1", "EXIT"))
    assert main[1:] == ["LDG.E.128", "EXIT"]


def test_a_slow_path_that_moves_nothing_is_left_out():
    code = nvidia(
        "BSSY B0, 0x60",
        "@P0 BRA 0x30",
        "BRA 0x50",
        "CALL.REL.NOINC 0x70",
        "FADD R1, R1, R1",
        "BSYNC B0",
        "EXIT",
        "RET R2",
    )
    assert opcodes(code) == ["BSSY", "BRA", "BRA", "BSYNC", "EXIT"]


def test_a_call_that_does_not_return_is_a_jump():
    """So ptxas leaves loops on sm_80: without, the code has no way through the loop."""
    wide = "LDG.E.128 R4, desc[UR6][R2.64]"
    code = nvidia("@!P0 BRA 0x40", wide, "@P1 CALL.REL.NOINC 0x40", "BRA 0x10", "FADD R1, R1, R1", "EXIT")
    path = main_path(code)
    assert [i.opcode for i in path.instructions] == ["BRA", "LDG.E.128", "CALL.REL.NOINC", "FADD", "EXIT"]
    assert (path.loops, path.skipped) == (1, 0)
    assert not any(i.call for i in code)


def test_a_call_weighs_more_than_other_instructions():
    """The subroutine of a long division is longer than the fast path, which the code has in line."""
    fast = ["FADD R1, R1, R1"] * 3
    code = nvidia("@P0 BRA 0x30", "CALL.REL.NOINC 0x70", "BRA 0x60", *fast, "EXIT", "FMUL R1, R1, R1", "RET R2")
    assert opcodes(code) == ["BRA", "FADD", "FADD", "FADD", "EXIT"]
    assert [i.call for i in code].count(True) == 1


def test_the_main_path_loads_and_stores():
    """The loop of narrow loads could be skipped as a tail."""
    store = "STG.E.128 desc[UR6][R2.64], R4"
    code = nvidia("@P0 BRA 0x30", "LDG.E.U16 R4, desc[UR6][R2.64]", "@P1 BRA 0x10", store, "EXIT")
    assert opcodes(code) == ["BRA", "LDG.E.U16", "BRA", "STG.E.128", "EXIT"]


def test_loops_that_are_left_out_are_counted():
    code = nvidia("@P0 BRA 0x30", "FADD R1, R1, R1", "@P1 BRA 0x10", "LDG.E.128 R4, desc[UR6][R2.64]", "EXIT")
    path = main_path(code)
    assert (path.loops, path.skipped) == (0, 1)


@pytest.mark.parametrize("wait", [["SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR10], R4"], ["NANOSLEEP 0x64", "MOV R0, UR6"]])
def test_loops_that_wait_are_not_left_out(wait):
    path = main_path(nvidia("@P0 BRA 0x40", *wait, "@!P1 BRA 0x10", *["EXIT"] * 3))
    assert (path.loops, path.skipped) == (0, 0)


def test_loops_are_passed_once():
    wide = "LDG.E.128 R4, desc[UR6][R2.64]"
    rotated = nvidia("@P0 BRA 0x40", wide, "FADD R1, R1, R1", "@P1 BRA 0x10", "EXIT")
    assert opcodes(rotated) == ["BRA", "LDG.E.128", "FADD", "BRA", "EXIT"]
    exit_at_the_top = nvidia("@P0 BRA 0x30", wide, "BRA 0x0", "MOV R1, R1", "EXIT")
    assert opcodes(exit_at_the_top) == ["BRA", "LDG.E.128", "BRA", "MOV", "EXIT"]
    assert main_path(rotated).loops == main_path(exit_at_the_top).loops == 1


def test_nested_loops():
    wide = "LDG.E.128 R4, desc[UR6][R2.64]"
    code = nvidia("MOV R0, R0", "FADD R1, R1, R1", wide, "@P0 BRA 0x20", "@P1 BRA 0x10", "EXIT")
    assert opcodes(code) == ["MOV", "FADD", "LDG.E.128", "BRA", "BRA", "EXIT"]
    assert main_path(code).loops == 2


def test_a_loop_with_two_entries_is_passed_once():
    code = nvidia("@P0 BRA 0x20", "LDG.E.128 R4, desc[UR6][R2.64]", "FMUL R1, R1, R1", "@P1 BRA 0x10", "EXIT")
    assert opcodes(code) == ["BRA", "LDG.E.128", "FMUL", "BRA", "EXIT"]


def test_code_without_an_end_is_refused():
    with pytest.raises(ValueError, match="no path"):
        main_path(nvidia("MOV R1, R1", "BRA 0x0", "EXIT"))


FLOW = """\
s_mov_b64 s[10:11], -1
s_cbranch_scc1 .LBB0_2
global_load_dwordx4 v[0:3], v7, s[0:1]
{note}
.LBB0_2:
s_andn2_b64 vcc, exec, s[10:11]
s_cbranch_vccnz .LBB0_4
global_load_dwordx4 v[0:3], v8, s[0:1]
v_add_u32_e32 v9, s13, v4
v_add_u32_e32 v9, s13, v4
.LBB0_4:
s_endpgm"""


def test_two_sides_of_one_choice_are_not_both_passed():
    """AMD's compiler writes if / else as two branches, with a flag that tells the second where the first went."""
    main = opcodes(amd(FLOW.format(note="s_mov_b64 s[10:11], 0")))
    assert main.count("global_load_dwordx4") == 1
    assert "v_add_u32_e32" not in main


@pytest.mark.parametrize("notes", ["s_mov_b32 s10, s5", "s_mov_b64 s[10:11], 0\ns_mov_b32 s10, s5"])
def test_a_flag_that_was_overwritten_says_nothing(notes):
    assert opcodes(amd(FLOW.format(note=notes))).count("global_load_dwordx4") == 2


def test_two_sides_of_one_choice_asked_the_other_way():
    flow = FLOW.replace("s_andn2_b64", "s_and_b64").replace("vccnz", "vccz")
    main = opcodes(amd(flow.format(note="s_mov_b64 s[10:11], 0")))
    assert main.count("global_load_dwordx4") == 1
    assert "v_add_u32_e32" not in main


def test_waves_on_the_main_path_have_lanes():
    code = amd("""\
s_cbranch_execz .LBB0_1
v_add_f32_e32 v0, v0, v0
s_cbranch_execnz .LBB0_2
.LBB0_1:
global_load_dwordx4 v[0:3], v7, s[0:1]
.LBB0_2:
s_endpgm""")
    assert opcodes(code) == ["s_cbranch_execz", "v_add_f32_e32", "s_cbranch_execnz", "s_endpgm"]


def test_a_loop_that_runs_while_lanes_are_left_ends():
    code = amd(".LBB0_1:\nglobal_load_dwordx4 v[0:3], v7, s[0:1]\ns_cbranch_execnz .LBB0_1\ns_endpgm")
    assert opcodes(code) == ["global_load_dwordx4", "s_cbranch_execnz", "s_endpgm"]


WIDE, NARROW = "LDG.E.128 R4, desc[UR6][R2.64]", "LDG.E.U16 R4, desc[UR6][R2.64]"


@pytest.mark.parametrize(
    ("code", "access"),
    [
        (nvidia("LD.E.64 R4, [R2.64]", "EXIT"), "load"),
        (nvidia("ST.E.64 [R2.64], R4", "EXIT"), "store"),
        (amd("flat_load_dwordx2 v[0:1], v[2:3]\ns_endpgm"), "load"),
        (amd("flat_store_dwordx2 v[0:1], v[2:3]\ns_endpgm"), "store"),
    ],
)
def test_generic_accesses(code, access):
    assert (code[0].access, code[0].bits) == (access, 64)


@pytest.mark.parametrize("opcode", ["exp", "log", "rcp", "rsq", "sqrt", "sin", "cos"])
def test_special_functions_on_amd(opcode):
    assert amd(f"v_{opcode}_f32_e32 v0, v1\ns_endpgm")[0].pipe == "special"


def test_a_quarter_of_the_bytes_is_bulk():
    code = nvidia(WIDE, "@P0 BRA 0x120", *[NARROW] * 16, "EXIT")
    assert opcodes(code) == ["LDG.E.128", "BRA", "EXIT"]


def test_wide_accesses_weigh_more_than_their_bytes():
    code = nvidia("@P0 BRA 0x30", WIDE, "EXIT", *[NARROW] * 32, "EXIT")
    assert opcodes(code) == ["BRA", "LDG.E.128", "EXIT"]


def test_a_tail_is_skipped_though_the_way_around_is_longer():
    code = nvidia(WIDE, "@P0 BRA 0x40", NARROW, "EXIT", *["FADD R1, R1, R1"] * 2, "EXIT")
    assert opcodes(code) == ["LDG.E.128", "BRA", "FADD", "FADD", "EXIT"]


def test_a_loop_off_the_main_path_is_not_counted():
    code = nvidia("@P0 BRA 0x30", WIDE, "EXIT", NARROW, "@P1 BRA 0x30", "EXIT")
    assert opcodes(code) == ["BRA", "LDG.E.128", "EXIT"]
    assert main_path(code).loops == 0


def test_an_inner_loop_that_exits_by_the_outer_ones_test():
    code = nvidia("BRA 0x40", "@P1 BRA 0x40", WIDE, "BRA 0x10", "@P0 BRA 0x10", "EXIT")
    assert opcodes(code) == ["BRA", "BRA", "BRA", "LDG.E.128", "BRA", "EXIT"]
    assert main_path(code).loops == 2
