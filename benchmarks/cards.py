"""Which of memory and instructions bounds a kernel on a named card, from its machine code alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """What a card can do; `bandwidth` is that of a copy, measured, not the one on the data sheet."""

    name: str
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes/s
    lanes: int = 128  # lane-instructions that a multiprocessor issues in a clock

    @property
    def per_byte(self):
        """Lane-instructions of each kind that fit into the time of one byte."""
        issued = self.multiprocessors * self.lanes * self.clock / self.bandwidth
        return {"issued": issued, "integer": issued / 2, "special": issued / 8}


H200 = Card("H200", multiprocessors=132, clock=1.98e9, bandwidth=4.3e12)  # issued 7.8, integer 3.9, special 0.97


def bound(report, bytes_per_element, card):
    """(what bounds the kernel, {resource: its time over that of the memory}); 1 is where the two are equal.

    report: an `Audit`; bytes_per_element: what the kernel moves to and from memory for one element.

    bound(report, 12, H200) -> ("memory", {"issued": 0.4, "integer": 0.3, "special": 0.2})
    """
    load = {pipe: getattr(report, pipe) / (limit * bytes_per_element) for pipe, limit in card.per_byte.items()}
    busiest = max(load, key=load.get)
    return (busiest if load[busiest] > 1 else "memory"), load
