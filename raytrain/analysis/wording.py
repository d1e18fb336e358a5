"""What an answer's sentences are made of: their kinds, figures with the digits that their interval allows, levels."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

_SIGNIFICANT = 2  # digits of half an interval
_FEWEST, _ENOUGH, _MOST = 3, 4, 6  # digits after the point

LevelText = Callable[[str, Any], str]  # of an axis and its level


@dataclasses.dataclass(frozen=True)
class Told:
    """Sentences, in the order that a reader wants: what was found, what limits it, and how it is known."""

    findings: Sequence[str] = ()
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()

    def __add__(self, other: "Told") -> "Told":
        return Told([*self.findings, *other.findings], [*self.warnings, *other.warnings], [*self.notes, *other.notes])

    @property
    def sentences(self) -> list[str]:
        return [*self.findings, *self.warnings, *self.notes]


def plain_level(axis: str, level: Any) -> str:
    """A level by its value alone."""
    return str(level)


def digits(low: float, high: float) -> int:
    """How many digits after the point say what the interval `low` to `high` allows: two of its half-width, up to four,
    and as many as keep an end apart from zero."""
    size = (high - low) / 2
    wanted = min(_ENOUGH, _SIGNIFICANT - 1 - math.floor(math.log10(size))) if size > 0 else _FEWEST
    apart = [-math.floor(math.log10(abs(end))) for end in (low, high) if end]
    return min(_MOST, max([_FEWEST, wanted, *apart]))


def with_interval(estimate: float, low: float, high: float) -> str:
    """Such as `0.189 nats (95% 0.177 to 0.201)`, of a size that is clear of zero, whose sign words give."""
    size, ends = abs(estimate), sorted((abs(low), abs(high)))
    places = digits(low, high)
    return f"{size:.{places}f} nats (95% {ends[0]:.{places}f} to {ends[1]:.{places}f})"


def signed_with_interval(estimate: float, low: float, high: float) -> str:
    """Such as `-0.007 nats, 95% -0.017 to +0.003`."""
    places = digits(low, high)
    return f"{estimate:+.{places}f} nats, 95% {low:+.{places}f} to {high:+.{places}f}"
