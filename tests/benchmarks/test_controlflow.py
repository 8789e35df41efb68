"""The main path, on machine code written by hand: what compilers rarely emit, and must not mislead the counts."""

import pytest

from vae_fast.benchmarks import sass
from vae_fast.benchmarks.controlflow import main_path

WIDE, NARROW = "LDG.E.128 R4, desc[UR6][R2.64]", "LDG.E.U16 R4, desc[UR6][R2.64]"
STORE = "STG.E.128 desc[UR6][R2.64], R4"


def nvidia(*lines):
    return sass.parse("\n".join(f"        /*{16 * n:04x}*/      {line} ;    /* 0x0 */" for n, line in enumerate(lines)))


def opcodes(instructions):
    return [i.opcode for i in main_path(instructions).instructions]


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
    slow = "CALL.REL.NOINC 0x90", "@P1 BRA 0x30", "BRA 0x80"  # in two blocks: the call is not in the last
    code = nvidia("@P0 BRA 0x40", *slow, *["FADD R1, R1, R1"] * 4, "EXIT", "FMUL R1, R1, R1", "RET R2")
    assert opcodes(code) == ["BRA", *["FADD"] * 4, "EXIT"]
    assert [i.call for i in code].count(True) == 1


@pytest.mark.parametrize(("longer", "wanted"), [(2, "FADD"), (4, "FMUL")])
def test_the_shorter_of_two_ways_that_move_as_much(longer, wanted):
    """Whichever is looked at first."""
    fall_through = ["FMUL R1, R1, R1"] * 2
    code = nvidia("@P0 BRA 0x40", *fall_through, f"BRA {16 * (4 + longer):#x}", *["FADD R1, R1, R1"] * longer, "EXIT")
    assert wanted in opcodes(code)
    assert len({"FADD", "FMUL"}.intersection(opcodes(code))) == 1


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [(NARROW, STORE), ("STG.E.U16 desc[UR6][R2.64], R4", WIDE)],
    ids=["narrow loads", "narrow stores"],
)
def test_the_main_path_loads_and_stores(narrow, wide):
    """The loop of narrow accesses could be skipped as a tail."""
    first, last = (each.partition(" ")[0] for each in (narrow, wide))
    assert opcodes(nvidia("@P0 BRA 0x30", narrow, "@P1 BRA 0x10", wide, "EXIT")) == ["BRA", first, "BRA", last, "EXIT"]


def test_atomics_are_no_tail():
    """A branch goes around each that has a mask."""
    code = nvidia(WIDE, "@P0 BRA 0x30", "RED.E.ADD [R2.64], R4", "EXIT")
    assert opcodes(code) == ["LDG.E.128", "BRA", "RED.E.ADD", "EXIT"]
    in_a_tail = nvidia("@P0 BRA 0x30", WIDE, "EXIT", *[NARROW] * 4, "RED.E.ADD [R2.64], R4", "EXIT")
    assert opcodes(in_a_tail) == ["BRA", "LDG.E.128", "EXIT"]


@pytest.mark.parametrize("store", ["STG.E desc[UR6][R2.64], R4", STORE])
def test_the_last_store_of_those_with_a_mask(store):
    """Around the others goes no branch, but ptxas ends the kernel before the last."""
    assert opcodes(nvidia(WIDE, f"@P0 {store}", "@P1 EXIT", store, "EXIT")).count(store.partition(" ")[0]) == 2
    assert opcodes(nvidia("@P1 EXIT", WIDE, store, "EXIT"))[1:] != ["EXIT"]


def test_the_end_of_full_tiles_is_no_mask():
    """What stands behind it is the tail."""
    code = nvidia("@P0 BRA 0x40", WIDE, STORE, "EXIT", "STG.E desc[UR6][R2.64], R4", "EXIT")
    assert opcodes(code) == ["BRA", "LDG.E.128", "STG.E.128", "EXIT"]
    code = nvidia("@P1 EXIT", STORE, "@P0 EXIT", "FADD R1, R1, R1", "EXIT")
    assert opcodes(code) == ["EXIT", "STG.E.128", "EXIT"]


@pytest.mark.parametrize(
    ("last", "skipped"), [((), 0), (("FADD R1, R1, R1",), 0), (("FADD R1, R1, R1",) * 3, 1), ((NARROW,), 1)]
)
def test_the_last_instructions_of_a_round_may_be_left_out(last, skipped):
    """The path leaves the loop before them, and has gone round, if they are a tenth of it at most."""
    after = 16 * (17 + len(last))
    round_ = WIDE, *["FMUL R1, R1, R1"] * 14, f"@P0 BRA {after:#x}", *last, "BRA 0x0"
    path = main_path(nvidia(*round_, STORE, "EXIT"))
    assert (path.loops, path.skipped) == (1 - skipped, skipped)
    assert len(path.instructions) == 18


def test_a_loop_of_which_only_waiting_is_left_out_is_passed():
    path = main_path(nvidia(WIDE, "@P0 BRA 0x50", "BAR.SYNC 0x0", "@P1 BRA 0x50", "BRA 0x0", "EXIT"))
    assert (path.loops, path.skipped) == (1, 0)


def test_loops_that_are_left_out_are_counted():
    code = nvidia("@P0 BRA 0x30", "FADD R1, R1, R1", "@P1 BRA 0x10", "LDG.E.128 R4, desc[UR6][R2.64]", "EXIT")
    path = main_path(code)
    assert (path.loops, path.skipped) == (0, 1)


def test_a_loop_of_which_the_condition_alone_is_passed_is_left_out():
    whole = "FSETP.GT P0, R1, R2", "@P0 BRA 0x50", NARROW, "FADD R1, R1, R1", "BRA 0x0", WIDE, "EXIT"
    path = main_path(nvidia(*whole))
    assert [i.opcode for i in path.instructions] == ["FSETP.GT", "BRA", "LDG.E.128", "EXIT"]
    assert (path.loops, path.skipped) == (0, 1)
    path = main_path(nvidia(*(WIDE if line is NARROW else line for line in whole)))
    assert (path.loops, path.skipped) == (1, 0)


def test_a_loop_works_though_its_shorter_rounds_do_not():
    code = nvidia("@P0 BRA 0x50", "BAR.SYNC 0x0", "@P1 BRA 0x10", "FADD R1, R1, R1", "@P2 BRA 0x10", WIDE, "EXIT")
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


@pytest.mark.parametrize(("early", "whole"), [(WIDE, "FADD R1, R1, R1"), ("FADD R1, R1, R1", WIDE)])
def test_a_round_that_ends_early_is_one_of_the_same_loop(early, whole):
    """Whichever the main path takes, it goes on to where the loop exits: at its top."""
    path = main_path(nvidia("@P2 BRA 0x60", "@P0 BRA 0x40", early, "BRA 0x0", whole, "BRA 0x0", "EXIT"))
    assert [i.opcode for i in path.instructions] == ["BRA", "BRA", "LDG.E.128", "BRA", "EXIT"]
    assert (path.loops, path.skipped) == (1, 0)


def test_a_loop_with_two_entries_is_passed_once():
    code = nvidia("@P0 BRA 0x20", "LDG.E.128 R4, desc[UR6][R2.64]", "FMUL R1, R1, R1", "@P1 BRA 0x10", "EXIT")
    assert opcodes(code) == ["BRA", "LDG.E.128", "FMUL", "BRA", "EXIT"]


def test_a_loop_with_two_entries_from_elsewhere_is_refused():
    with pytest.raises(ValueError, match="a loop with two entries, whose main path is not defined"):
        main_path(nvidia("@P0 BRA 0x30", "MOV R1, R1", "BRA 0x30", "@P1 BRA 0x20", "EXIT"))


def test_code_without_an_end_is_refused():
    with pytest.raises(ValueError, match="no path"):
        main_path(nvidia("MOV R1, R1", "BRA 0x0", "EXIT"))


@pytest.mark.parametrize(("narrow", "passed"), [(24, 0), (25, 25)], ids=["a quarter", "less"])
def test_a_quarter_of_the_bytes_is_bulk(narrow, passed):
    code = nvidia(WIDE, f"@P0 BRA {16 * (2 + narrow):#x}", *[NARROW] * narrow, "EXIT")
    assert opcodes(code) == ["LDG.E.128", "BRA", *["LDG.E.U16"] * passed, "EXIT"]


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
