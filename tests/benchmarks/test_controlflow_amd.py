"""The main path of AMD's machine code, whose compiler writes a choice as two branches and a flag."""

import pytest

from tests.benchmarks.test_controlflow import opcodes
from vae_fast.benchmarks import gcn
from vae_fast.benchmarks.controlflow import main_path


def amd(text):
    return gcn.parse("\n".join(line if line.startswith(".L") else f"\t{line}" for line in text.split("\n")))


WHILE = """\
global_load_dwordx4 v[0:3], v7, s[0:1]
s_branch .LBB0_2
.LBB0_1:
s_andn2_b64 vcc, exec, s[8:9]
s_cbranch_vccz .LBB0_3
.LBB0_2:
{condition}
v_cmp_nlt_f32_e32 vcc, s10, v0
s_mov_b64 s[8:9], -1
s_cbranch_vccnz .LBB0_1
{work}
s_mov_b64 s[8:9], 0
s_branch .LBB0_1
.LBB0_3:
global_store_dwordx4 v7, v[0:3], s[0:1]
s_endpgm"""


@pytest.mark.parametrize(("work", "loops"), [("global_load_ushort", 0), ("global_load_dwordx4", 1)])
def test_a_round_that_only_leaves_is_none(work, loops):
    """AMD's compiler goes to the end of a `while` once more, with a flag by which it leaves there."""
    condition = "\n".join(["v_add_f32_e32 v0, v0, v0"] * 12)  # beside which the flag's own instruction is short
    path = main_path(amd(WHILE.format(condition=condition, work=f"{work} v[4:7], v8, s[0:1]")))
    assert (path.loops, path.skipped) == (loops, 1 - loops)
    assert [i.opcode for i in path.instructions if i.access == "load"] == ["global_load_dwordx4"] * (1 + loops)


def test_code_that_no_branch_reaches_is_of_no_loop():
    """On AMD that of a wave without lanes: here it would lead from the loop back to what stands before it."""
    code = amd("""\
.LBB0_1:
v_add_f32_e32 v0, v0, v0
.LBB0_2:
global_load_dwordx4 v[0:3], v7, s[0:1]
s_cbranch_execz .LBB0_3
s_branch .LBB0_4
.LBB0_3:
s_cbranch_scc0 .LBB0_1
.LBB0_4:
s_cbranch_scc1 .LBB0_2
s_endpgm""")
    path = main_path(code)
    assert [i.opcode for i in path.instructions] == [
        "v_add_f32_e32", "global_load_dwordx4", "s_cbranch_execz", "s_branch", "s_cbranch_scc1", "s_endpgm"
    ]  # fmt: skip
    assert path.loops == 1


def test_loops_that_wait_are_not_left_out_on_amd():
    code = amd("""\
s_cbranch_scc0 .LBB0_2
.LBB0_1:
s_sleep 1
v_mov_b32_e32 v0, v0
s_cbranch_scc1 .LBB0_1
.LBB0_2:
s_endpgm""")
    path = main_path(code)
    assert (path.loops, path.skipped) == (0, 0)


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


@pytest.mark.parametrize(
    "notes",
    ["s_mov_b32 s10, s5", "s_mov_b64 s[10:11], 0\ns_mov_b32 s10, s5", "s_cmov_b64 s[10:11], 0"],
    ids=["half", "half of a constant", "perhaps"],
)
def test_a_flag_that_was_overwritten_says_nothing(notes):
    assert opcodes(amd(FLOW.format(note=notes))).count("global_load_dwordx4") == 2


@pytest.mark.parametrize("between", ["s_mov_b32 vcc_lo, s5", "s_cbranch_scc0 .LBB0_4"], ids=["half", "a branch"])
def test_what_vcc_was_made_from_may_not_be_known(between):
    flow = FLOW.replace("s_cbranch_vccnz", f"{between}\ns_cbranch_vccnz")
    assert opcodes(amd(flow.format(note="s_mov_b64 s[10:11], 0"))).count("global_load_dwordx4") == 2


def test_one_of_two_sides_of_a_choice_is_passed():
    """Though it is shorter around both; and what asks for the flag may stand before other instructions."""
    flow = FLOW.replace("global_load_dwordx4 v[0:3], v7, s[0:1]", "v_mul_f32_e32 v0, v0, v0")
    flow = flow.replace("global_load_dwordx4 v[0:3], v8, s[0:1]", "v_mul_f32_e32 v0, v0, v0\nv_mul_f32_e32 v0, v0, v0")
    flow = flow.replace("s_cbranch_vccnz", "s_nop 0\ns_cbranch_vccnz")
    main = opcodes(amd(flow.format(note="s_mov_b64 s[10:11], 0")))
    assert main.count("v_mul_f32_e32") == 1


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
