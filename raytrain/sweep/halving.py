"""Successive halving: which variants are promoted at a rung. Pure, so that the engine and a replay decide alike.

Variants are promoted, not single seeds: of equal variants the luckiest seeds would be, each alone, and no mean could be
taken of what is left.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise


def merit(scores: Iterable[float]) -> float:
    """A variant's score: the mean over its seeds that have one; NaN if none has."""
    known = [score for score in scores if not math.isnan(score)]
    return math.fsum(known) / len(known) if known else math.nan


def halve(scores: Mapping[str, float], keep: int) -> set[str]:
    """The `keep` variants with the lowest score; NaN is worse than any number; the smaller name breaks a tie.

    The decision of a rung waits for the scores of all of them (synchronous successive halving, Jamieson and
    Talwalkar, arXiv 1502.07943), and depends on them alone: not on the order of arrival.
    """
    return set(_order(scores)[:keep])


def settled(scores: Mapping[str, float], waiting: int, keep: int) -> tuple[set[str], set[str]]:
    """Which trials are sure to be promoted or stopped, with `waiting` more scores to come: as `halve` will decide.

    If every one of those is better, a variant moves down by `waiting` places; none moves up. So lanes have work before
    a rung is complete, and still no score of a rung decides by when it came.
    """
    order = _order(scores)
    return set(order[: max(0, keep - waiting)]), set(order[keep:])


def survivors(variants: int, rungs: int, factor: int = 4) -> list[int]:
    """How many of `variants` are promoted at each of `rungs`: a `factor`-th part each time, rounded up.

    >>> survivors(64, 2)
    [16, 4]
    """
    return [math.ceil(variants / factor ** (rung + 1)) for rung in range(rungs)]


def _order(scores: Mapping[str, float]) -> list[str]:
    """Best first."""

    def place(trial: str) -> tuple[float, bool, str]:
        diverged = math.isnan(scores[trial])
        return (math.inf if diverged else scores[trial], diverged, trial)  # NaN itself has no order

    return sorted(scores, key=place)


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving: one variant in `factor` is promoted at each of `rungs` (model FLOPs).

    `decay` is the part of a rung's FLOPs that the branch takes after which it is scored.
    """

    factor: int
    rungs: tuple[float, ...]
    decay: float

    def spent(self, variants: int, trials: int, budget: float) -> float:
        """Model FLOPs of a study of `trials` trials, those of the branches among them; about so, if some variants have
        more of them than others."""
        alive = [n * trials / variants for n in (variants, *survivors(variants, len(self.rungs), self.factor))]
        trunk = sum(
            n * (end - begin) for n, (begin, end) in zip(alive, pairwise((0, *self.rungs, budget)), strict=True)
        )
        return trunk + sum(n * self.decay * rung for n, rung in zip(alive, self.rungs, strict=False))
