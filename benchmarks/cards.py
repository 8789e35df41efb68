"""Which of memory and instructions bounds a kernel on a named card, from its machine code alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """What a card can do; `bandwidth` is that of a copy, not the one on the data sheet, which no copy reaches.

    Lanes: lane-instructions that a multiprocessor (AMD: compute unit) issues in a clock, of all kinds together, of
    float arithmetic, of integer, logic and compare, and of special functions (CUDA C++ Programming Guide, "Arithmetic
    instructions").
    """

    name: str
    target: str
    multiprocessors: int
    clock: float  # Hz, boost
    bandwidth: float  # bytes/s
    lanes: int = 128
    float_lanes: int = 128
    integer_lanes: int = 64
    special_lanes: int = 16

    @property
    def per_byte(self):
        """Lane-instructions of each kind that fit into the time of one byte."""
        clocks = self.multiprocessors * self.clock / self.bandwidth
        lanes = {"issued": self.lanes, "floating": self.float_lanes}
        lanes |= {"integer": self.integer_lanes, "special": self.special_lanes}
        return {kind: clocks * number for kind, number in lanes.items()}


COPY = 0.9  # of the bandwidth on the data sheet, as assumed of the H200's 4.8 TB/s, of which 0.86 to 0.88 were measured

# Per byte: 7.8 issued, 3.9 integer, 0.97 special.
H200 = Card("H200", "sm_90", multiprocessors=132, clock=1.98e9, bandwidth=4.3e12)

# The makers' data sheets; the first of each target stands for it.
CARDS = {
    "h200": H200,
    "h100": Card("H100 SXM", "sm_90", multiprocessors=132, clock=1.98e9, bandwidth=COPY * 3.35e12),
    "a100": Card("A100 80GB", "sm_80", multiprocessors=108, clock=1.41e9, bandwidth=COPY * 2.04e12, float_lanes=64),
    "b200": Card("B200", "sm_100", multiprocessors=148, clock=1.965e9, bandwidth=COPY * 8.0e12),
    "mi300x": Card(
        "MI300X", "gfx942", multiprocessors=304, clock=2.1e9, bandwidth=COPY * 5.3e12, lanes=64, float_lanes=64
    ),
}


def bound(report, bytes_per_element, card):
    """(what bounds the kernel, {resource: its time over that of the memory}); 1 is where the two are equal.

    report: an `Audit`; bytes_per_element: what the kernel moves to and from memory for one element. Raises ValueError
    where the kernel multiplies matrices (`tl.dot`): the rates of those units are not known here. Float arithmetic is
    taken for float32; float64 has half the lanes or fewer.

    bound(report, 12, H200) -> ("memory", {"issued": 0.4, "floating": 0.2, "integer": 0.3, "special": 0.2})
    """
    if report.matrices:
        raise ValueError(f"{report.kernel} on {report.target} multiplies matrices: what bounds it cannot be said")
    moved = bytes_per_element or 1e-9  # a main path may move none: instructions bound it
    load = {pipe: getattr(report, pipe) / (limit * moved) for pipe, limit in card.per_byte.items()}
    busiest = max(load, key=load.get)
    return (busiest if load[busiest] > 1 else "memory"), load
