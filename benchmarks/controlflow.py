"""Instructions, basic blocks, and the main path through them: the part of the machine code that most elements take.

A kernel whose launcher cannot promise full tiles has two paths, chosen at run time: full tiles with wide accesses, and
tails with masked, often narrow ones. Only the first decides the speed on large tensors, so counts are of one path from
the entry to the exit. It loads, and it stores, where any path does: around a loop that may have no round there is often
one that does not. Among all such paths (each loop body passed once) the main path is the one of greatest weight:

- *bulk* is the widest access that carries at least a quarter of the bytes of all global accesses in the code;
- a global access as wide as bulk or wider, and an atomic of any width, adds (its bytes)^2 to the weight of a path, a
  narrower one takes that away. So full tiles win over tails, a tail that can be skipped is skipped, and an early return
  that moves nothing loses;
- among equals the path of fewest calls wins, and then that of fewest instructions: that without masks, or the fast
  path of sin or of a long division.

In a kernel that has narrow accesses only, bulk is narrow, nothing is skipped, and the count includes them all.

A loop can be left out by the same rule, or left before its first round ends, where the rest has narrow accesses or
none: the code does not tell the loop of a tail, or of the slow path of sin, from one that does the kernel's work.
`Path.skipped` counts them.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

BULK_SHARE = 1 / 4
LAST_SHARE = 1 / 10  # of the instructions of a round
SLEEP = ("NANOSLEEP", "s_sleep")
EXIT = -1  # as a branch target: the end of the kernel


@dataclass(frozen=True)
class Instruction:
    text: str
    opcode: str
    pipe: str
    access: str = ""  # "load", "store" or "atomic" for one of global memory
    bits: int = 0  # its width in one lane
    targets: tuple[int, ...] = ()  # numbers of the instructions that a branch may go to, or EXIT
    falls_through: bool = True
    likely: bool = False  # a branch that is always taken, except to leave a loop that it closes
    asks: tuple[str, bool] | None = None  # (flag, value): a branch that is taken where the flag has this value
    sets: tuple[str, bool | None] | None = None  # (flag, value): the flag's new value, None where it is not a constant
    call: bool = False  # of a subroutine, whose instructions are not followed


@dataclass
class Block:
    instructions: list[Instruction] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)  # blocks that its last instruction branches to
    through: set[int] = field(default_factory=set)  # the block behind it, where it may go on there

    @property
    def successors(self):
        return sorted(self.taken | self.through)


class Loop(NamedTuple):
    header: int
    body: set[int]  # its blocks
    ends: set[int]  # those that go back to the header


@dataclass(frozen=True)
class Path:
    instructions: list[Instruction]
    loops: int  # loop bodies on it, each counted once
    skipped: int  # loops that it leaves out


def main_path(instructions):
    """The `Path` that most elements take; the rule is at the top of this file."""
    blocks = split_into_blocks(instructions)
    edges, loops = _unroll_once(blocks)
    bulk = bulk_bits(instructions)
    asked = {i.asks[0] for i in instructions if i.asks}
    # For each block, what is known of the flags there, and which of loads and stores came before it: (weight, minus the
    # number of calls, minus that of instructions, where from).
    best = {0: {(frozenset(), frozenset()): (0, 0, 0, None)}}
    for number in _topological(edges):
        code = blocks[number].instructions
        gain, calls = sum(_weight(i, bulk) for i in code), sum(i.call for i in code)
        moves = {i.access for i in code} & {"load", "store"}
        for (known, moved), (weight, called, count, _) in best.get(number, {}).items():
            after = _flags_after(blocks[number], dict(known), asked)
            score = (weight + gain, called - calls, count - len(code), (number, (known, moved)))
            for successor in _onward(blocks[number], edges[number], after):
                states = best.setdefault(successor, {})
                key = (frozenset(after.items()), moved | moves)
                states[key] = max(states.get(key, score), score, key=lambda s: s[:3])
    chosen = _trace_back(best, len(blocks) - 1)
    without_a_round = [loop for loop in loops if not _goes_round(blocks, loop, chosen, asked)]
    skipped = [loop for loop in without_a_round if _works(blocks, loop.body.difference(chosen))]
    passed = [loop for loop in loops if loop.header in chosen and loop not in skipped]
    instructions = [i for number in chosen for i in blocks[number].instructions]
    return Path(instructions, len(passed), len(skipped))


def bulk_bits(instructions):
    """The widest global access that carries at least a quarter of the bytes of all."""
    carried = Counter()
    for i in instructions:
        carried[i.bits] += i.bits
    return max((bits for bits, total in carried.items() if total >= BULK_SHARE * carried.total()), default=0)


def split_into_blocks(instructions):
    """Basic blocks in the order of the code: the first is the entry, the last an empty one that stands for the exit."""
    end = len(instructions)
    starts = {0, end}
    for number, i in enumerate(instructions):
        if i.targets:
            starts.update((*(t for t in i.targets if t != EXIT), number + 1))
    starts = sorted(starts)
    block_at = {start: block for block, start in enumerate(starts)} | {EXIT: len(starts) - 1}
    blocks = []
    for start, following in pairwise(starts):
        last = instructions[following - 1]
        through = {block_at[following]} if last.falls_through else set()
        blocks.append(Block(instructions[start:following], {block_at[t] for t in last.targets}, through))
    return [*blocks, Block()]


def _weight(instruction, bulk):
    square = (instruction.bits // 8) ** 2
    return square if instruction.bits >= bulk or instruction.access == "atomic" else -square


def _flags_after(block, known, asked):
    """What is known of the flags that some branch asks for, at the end of a block."""
    for i in block.instructions:
        if i.sets and i.sets[0] in asked:
            known.pop(i.sets[0], None)
            if i.sets[1] is not None:
                known[i.sets[0]] = i.sets[1]
    return known


def _onward(block, successors, known):
    """Those of the successors to which a block goes, given what is known of the flags at its end."""
    last = block.instructions[-1] if block.instructions else None
    if last is None:
        return successors
    if last.likely:
        goes, others = block.taken, block.through
    elif last.asks and last.asks[0] in known:
        taken = known[last.asks[0]] == last.asks[1]
        goes, others = (block.taken, block.through) if taken else (block.through, block.taken)
    else:
        return successors
    if goes.isdisjoint(successors):  # it goes back, and leaves after the next round
        return successors
    return [successor for successor in successors if successor not in others - goes]


def _trace_back(best, exit_block):
    if exit_block not in best:
        raise ValueError("the machine code has no path from its entry to an exit")
    ends = best[exit_block]
    number, state = exit_block, max(ends, key=lambda state: (len(state[1]), ends[state][:3]))
    chosen = []
    while (origin := best[number][state][-1]) is not None:
        number, state = origin
        chosen.append(number)
    return chosen[::-1]


def _unroll_once(blocks):
    """Successors without cycles, and the loops: the ends of a body go on to where the loop exits."""
    edges = {number: block.successors for number, block in enumerate(blocks)}
    reached, back_edges = _search(edges)
    ends = defaultdict(list)  # by header: a loop has several where a round may end early
    for tail, header in back_edges:
        edges[tail].remove(header)
        ends[header].append(tail)
    into = {number: [p for p in reached if number in blocks[p].successors] for number in reached}
    loops = [Loop(header, _loop_body(into, tails, header), set(tails)) for header, tails in ends.items()]
    for loop in sorted(loops, key=lambda loop: -len(loop.body)):  # outer first: inner ones exit by them
        exits = {successor for number in loop.body for successor in edges[number] if successor not in loop.body}
        for tail in loop.ends:
            edges[tail] += sorted(exits)
    return edges, loops


def _goes_round(blocks, loop, path, asked):
    """Whether a path comes to where another round of a loop may begin, which it has left out.

    Not where a flag ends the loop, which AMD's compiler sets in a round without work. The path may leave the loop just
    before that, where no more is left than a jump and a few instructions for the next round.
    """
    passed = sum(len(blocks[number].instructions) for number in loop.body.intersection(path))
    left = loop.ends.difference(path)
    beginnings = {loop.header, *(end for end in left if _is_short(blocks[end], LAST_SHARE * passed))}
    known = {}
    for number in path:
        block = blocks[number]
        known = _flags_after(block, known, asked)
        if number in loop.body and not beginnings.isdisjoint(_onward(block, block.successors, known)):
            return True
    return False


def _is_short(block, most):
    return (
        not any(i.access for i in block.instructions) and sum(i.pipe != "control" for i in block.instructions) <= most
    )


def _works(blocks, body):
    """Whether a loop does more than wait: for a barrier, or, asleep between the rounds, for tensor memory."""
    code = [i for number in body for i in blocks[number].instructions]
    return any(i.pipe != "control" for i in code) and not any(i.opcode.startswith(SLEEP) for i in code)


def _loop_body(into, tails, header):
    """The header, and the blocks that reach an end of the loop without passing it."""
    body, ahead = {header}, list(tails)
    while ahead:
        number = ahead.pop()
        if number not in body:
            body.add(number)
            ahead += into[number]
    return body


def _topological(edges):
    """The blocks that the entry reaches, each before its successors."""
    order, back_edges = _search(edges)
    if back_edges:
        raise ValueError("the machine code has a loop with two entries, whose main path is not defined")
    return order[::-1]


def _search(edges):
    """Depth-first from the entry: blocks in the order of leaving them, and the edges to a block not yet left."""
    order, back_edges, open_ = [], [], {0}
    seen, stack = {0}, [(0, iter(edges[0]))]
    while stack:
        number, onward = stack[-1]
        successor = next(onward, None)
        if successor is None:
            order.append(number)
            open_.discard(number)
            stack.pop()
        elif successor in open_:
            back_edges.append((number, successor))
        elif successor not in seen:
            seen.add(successor)
            open_.add(successor)
            stack.append((successor, iter(edges[successor])))
    return order, back_edges
