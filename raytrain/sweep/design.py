"""Designs: which points of a space to run, with which seeds, in which order, and what that resolves. Pure: numpy.

The list depends on the candidates and the arguments alone. Random draws are the raw 64-bit stream of PCG64, which
numpy keeps the same in every version (NEP 19 promises no such thing of Generator's methods). The exchange's floats may
differ in the last bits between two machines' BLAS, so among gains equal to within 1e-7 the first candidate is taken,
and a swap must gain more than 1e-6: in spaces of a few levels gains are either the same or far further apart.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.special

from raytrain.errors import UserError, unknown_value
from raytrain.sweep.factorial import Array, LeastSquares, Model, Point, fit_model, interaction_columns, live, population

DESIGNS = ("full", "one_at_a_time", "leave_one_out", "random", "d_optimal")
SAMPLED = ("random", "d_optimal")  # those of so many trials, of all points
REPLICATED = (
    10  # points of a d_optimal design that run twice, where that leaves half of the residual degrees of freedom
)
_TRIPLE_SD = 0.1  # of what three axes together may do to a loss, in noise sd
_TIE, _LEAST_GAIN = 1e-7, 1e-6


@dataclasses.dataclass(frozen=True)
class Precision:
    """The precision of one effect under a design: the expected half-width of its 95% interval over the noise's sd.

    None where the design aliases the effect, or leaves no degrees of freedom to estimate the noise.
    """

    effect: str
    axes: tuple[str, ...]
    half_width: float | None


@dataclasses.dataclass(frozen=True)
class Design:
    """Trials in the order to run them, as (index of the candidate, seed)."""

    name: str
    trials: tuple[tuple[int, int], ...]
    candidates: int
    interactions: bool  # whether main effects are separated from pairwise interactions
    d_efficiency: float | None  # of a run, against one of the full grid; None if some effects are aliased
    residual_df: int
    precisions: tuple[Precision, ...]
    tuned: str | None = None  # the field whose levels the candidates spread over too

    def by_seed(self, seeds: int) -> "Design":
        """The same with the half-widths of effects that are judged by how they vary over `seeds` shared seeds.

        Each then has seeds - 1 degrees of freedom of its own, not those of all residuals: see raytrain.analysis.strata.
        """
        if not self.residual_df:
            return self
        ratio = float(scipy.special.stdtrit(seeds - 1, 0.975) / scipy.special.stdtrit(self.residual_df, 0.975))
        wider = (
            dataclasses.replace(own, half_width=None if own.half_width is None else own.half_width * ratio)
            for own in self.precisions
        )
        return dataclasses.replace(self, precisions=tuple(wider))

    def describe(self) -> str:
        """Such as `d_optimal: 128 trials of 120 variants out of 720; D-efficiency 0.96; ...`."""
        chosen = len({index for index, _ in self.trials})
        what = f"pairs of a variant and a {self.tuned}" if self.tuned else "variants"
        parts = [f"{self.name}: {len(self.trials)} trials of {chosen} {what} out of {self.candidates}"]
        if self.d_efficiency is not None:
            parts.append(f"D-efficiency {self.d_efficiency:.3f}")
        parts.append(f"{self.residual_df} residual degrees of freedom")
        for order, kind in ((1, "main effects"), (2, "interactions")):
            widths = [
                precision.half_width
                for precision in self.precisions
                if len(precision.axes) == order and precision.half_width
            ]
            if widths:
                parts.append(f"{kind} to +-{min(widths):.2f} to {max(widths):.2f} noise sd")
        return "; ".join(parts)


def choose(
    candidates: Sequence[Point],
    design: str,
    *,
    base: int = 0,
    trials: int | None = None,
    seeds: int = 1,
    base_seeds: int | None = None,
    seed: int = 0,
    interactions: bool = True,
    reference: Point | None = None,
    starts: int = 8,
    tuned: str | None = None,
) -> Design:
    """Choose trials among `candidates`, distinct variants given by their level by axis.

    `base` is the index of the baseline, which is always run. Every chosen point runs with `seeds` seeds, from `seed`
    upwards, and the baseline with `base_seeds`, by default 3 or more; but 1 for a plain design without replicates
    (`seeds` 1, no `trials`). `trials` is the whole number of runs, replicates included, for `random` and `d_optimal`.
    `tuned` is a field that candidates have a value of beside their levels, which those two designs spread runs over.

    - full: every candidate
    - one_at_a_time: the base, and each other level of each axis alone
    - leave_one_out: the base, and the base with one axis at a time put back to its level in `reference` (by default the
      axis's first level): which of the base's choices earn their place
    - random: a simple random sample of the candidates
    - d_optimal: a fraction that estimates all main effects (and, with `interactions`, all pairwise interactions)
      together best, by exchange (see `exchange`), the best of `starts` random starts. Where `trials` leave 20 residual
      degrees of freedom or more, ten of its points run twice: what two runs of one point differ in is noise alone, so
      that a lack of fit can be distinguished from it; and points are chosen so that this shows which three axes act
      together (see `_beside_triples`)

    Raises UserError for arguments that do not fit.
    """
    if design not in DESIGNS:
        raise unknown_value("design", design, DESIGNS)
    sampled = design in SAMPLED
    if sampled != (trials is not None):
        raise UserError(f"design {design} {'needs' if sampled else 'takes no'} --trials N")
    for name, value in (("seeds", seeds), ("base_seeds", base_seeds), ("trials", trials), ("starts", starts)):
        if value is not None and value < 1:
            raise UserError(f"{name} ({value}) must be 1 or more")
    base_runs = max(seeds, base_seeds or (3 if sampled or seeds > 1 else 1))
    draws = Draws(seed)
    points = [live(candidate) for candidate in candidates]
    others = [index for index in range(len(points)) if index != base]
    if design == "one_at_a_time":
        others = _one_at_a_time(points, base)
    elif design == "leave_one_out":
        others = _leave_one_out(points, base, live(reference or {}))
    elif trials is not None:
        count, left_over = divmod(trials - base_runs, seeds)
        base_runs += left_over
        if count < 1:
            raise UserError(
                f"trials ({trials}) must be more than the {base_runs} of the base; try {base_runs + 10 * seeds}"
            )
        if design == "random":
            others = [others[place] for place in draws.shuffled(len(others))[:count]]
        else:
            matrix = Model(points, points[base], interactions=interactions, tuned=tuned).matrix(points)
            matrix = matrix @ _whitening(matrix)
            size = matrix.shape[1]
            if count + 1 < size:
                least = (size - 1) * seeds + base_runs - left_over
                terms = "main effects and interactions" if interactions else "main effects"
                terms += f" and the curves in {tuned}" if tuned else ""
                raise UserError(f"trials ({trials}) must be {least} or more for the {size} coefficients of {terms}")
            fixed = base_runs / seeds * np.outer(matrix[base], matrix[base])
            again = 0 if seeds > 1 or trials - size < 2 * REPLICATED else REPLICATED
            if interactions and tuned is None and count - size >= 2 * REPLICATED:
                matrix, prior = _beside_triples(points, matrix)
                fixed = base_runs / seeds * np.outer(matrix[base], matrix[base]) + prior
            others = exchange(matrix, fixed, count - again, draws, starts)
            others += replicated(matrix, fixed, others, again)

    repeats = Counter({index: seeds * count for index, count in Counter(others).items()})
    repeats[base] += base_runs
    runs = [(index, seed + repeat) for index in sorted(repeats) for repeat in range(repeats[index])]
    run_points = [points[index] for index, _ in runs]
    space = population(run_points, points)
    full = Model(space, points[base], interactions=interactions, tuned=tuned)
    model, fit = fit_model(full, run_points)
    return Design(
        name=design,
        trials=tuple(runs[place] for place in draws.shuffled(len(runs))),
        candidates=len(points),
        interactions=bool(model.pairs),
        d_efficiency=_d_efficiency(model.matrix(run_points), model.matrix(space)),
        residual_df=fit.df,
        precisions=precisions(full, model, fit),
        tuned=tuned,
    )


def resolution(runs: Sequence[int], *, shared: bool) -> float | None:
    """The half-width of the 95% interval of the difference between two variants, in noise sd, with so many `runs` each.

    t(0.975, df) sqrt(2 / n), n the fewest runs. Where variants share their seeds a difference varies from seed to seed
    by its own amount, which those n alone estimate: df = n - 1. With seeds of their own, or a single run each, all
    replicates estimate one noise: df = sum over variants of (runs - 1); None if there are none.
    """
    n, df = min(runs), sum(count - 1 for count in runs)
    if n > 1 and shared:
        df = n - 1
    return float(scipy.special.stdtrit(df, 0.975)) * math.sqrt(2 / n) if df else None


def precisions(full: Model, model: Model, fit: LeastSquares) -> tuple[Precision, ...]:
    """The half-widths t(0.975, df) x sqrt(c' (X'X)^-1 c), with the noise estimated by the fit's own residuals.

    `full` has the effects that were asked for, `model` those of them that the runs can separate.
    """
    scales = np.linalg.norm(fit.weights(model.contrasts), axis=1)
    aliased = np.any(fit.unseen(model.contrasts), axis=1)
    t = scipy.special.stdtrit(fit.df, 0.975) if fit.df else np.nan
    widths = {
        effect: float(t * scale)
        for effect, scale, hidden in zip(model.effects, scales, aliased, strict=True)
        if fit.df and not hidden
    }
    return tuple(Precision(effect.name, effect.axes, widths.get(effect)) for effect in full.effects)


def exchange(matrix: Array, fixed: Array, count: int, draws: "Draws", starts: int = 1) -> list[int]:
    """The `count` rows of `matrix` (candidates x p) that, with the information `fixed` (p x p) already in hand, come
    near to the largest det(X'X): the D-optimal design. A row may be taken more than once.

    Fedorov's exchange (Theory of Optimal Experiments, 1972) as Cook and Nachtsheim modify it (Technometrics 22, 1980):
    for each chosen row i in turn, the best swap for a candidate j is made, while one gains. With d_ij = x_i' M^-1 x_j
    a swap multiplies det M by

        1 + d_jj - (d_ii d_jj - d_ij^2) - d_ii

    and M^-1 and all d_jj follow by two rank-one updates (Sherman and Morrison 1950). Coordinate exchange (Meyer and
    Nachtsheim, Technometrics 37, 1995) would spare the candidate list, but that list is short here, and holds the
    constraints. A small ridge lets a start be singular, as it may be when count is near p.
    """
    size = matrix.shape[1]
    ridge = 1e-3 * np.eye(size)
    best: tuple[float, list[int]] = (-math.inf, [])
    for _ in range(starts):
        rows = draws.below(len(matrix), count)
        swapped = True
        while swapped:
            swapped = False
            information = ridge + fixed + matrix[rows].T @ matrix[rows]
            inverse = np.linalg.inv(information)
            d = np.einsum("np,np->n", matrix @ inverse, matrix)
            for place, i in enumerate(rows):
                d_i = matrix @ (inverse @ matrix[i])
                gains = d * (1 - d[i]) + d_i**2 - d[i]
                j = int(np.argmax(gains >= gains.max() - _TIE * (1 + gains.max())))
                if gains[j] > _LEAST_GAIN:
                    rows[place], swapped = j, True
                    for row, sign in ((j, 1.0), (i, -1.0)):
                        step = inverse @ matrix[row]
                        scale = sign / (1 + sign * (matrix[row] @ step))
                        inverse -= scale * np.outer(step, step)
                        d -= scale * (matrix @ step) ** 2
        log_det = float(np.linalg.slogdet(information)[1])
        if log_det > best[0] + _TIE:
            best = (log_det, list(rows))
    return best[1]


def replicated(matrix: Array, fixed: Array, rows: Sequence[int], count: int) -> list[int]:
    """Those of `rows` to run once more, each once, so that det(X'X) is largest step by step; fewer than `count` by as
    many as there are twice in `rows` already. The rest is as for `exchange`."""
    runs = Counter(rows)
    once = sorted(row for row, times in runs.items() if times == 1)
    information = fixed + matrix[[*rows]].T @ matrix[[*rows]]
    out: list[int] = []
    for _ in range(min(len(once), max(0, count - (len(runs) - len(once))))):
        d = np.einsum("np,np->n", matrix[once] @ np.linalg.inv(information), matrix[once])
        row = once.pop(int(np.argmax(d >= d.max() - _TIE * (1 + d.max()))))
        out.append(row)
        information = information + np.outer(matrix[row], matrix[row])
    return out


def _beside_triples(points: Sequence[Point], matrix: Array) -> tuple[Array, Array]:
    """The columns of `matrix` (points x p), beside those of all triples of axes, and the information in hand on both.

    A term of a triple is not estimated; it is taken to be a draw of mean 0 and sd `_TRIPLE_SD` noise sd, which counts
    as information of 1 on its column times that sd. An exchange then keeps triples from looking like one another, at a
    small cost to what is estimated (DuMouchel and Jones, Technometrics 36, 1994). Their columns are first freed of what
    the model explains and made of one size over all points.
    """
    axes = list(dict.fromkeys(axis for point in points for axis in point))
    every = np.hstack([interaction_columns(points, three) for three in itertools.combinations(axes, 3)] or [matrix])
    beyond = every - matrix @ (matrix.T @ every) / len(matrix)
    beyond = beyond @ _whitening(beyond) if np.abs(beyond).max(initial=0) > _LEAST_GAIN else beyond[:, :0]
    return np.hstack([matrix, _TRIPLE_SD * beyond]), np.diag(np.repeat([0.0, 1.0], [matrix.shape[1], beyond.shape[1]]))


def _whitening(matrix: Array) -> Array:
    """p x rank: what makes `matrix` (n x p) a basis X of its columns with X'X / n = the identity."""
    _, sizes, v = np.linalg.svd(matrix, full_matrices=False)
    rank = np.sum(sizes > sizes[0] * 1e-9)
    out: Array = v[:rank].T / sizes[:rank] * math.sqrt(len(matrix))
    return out


def _d_efficiency(chosen: Array, candidates: Array) -> float | None:
    """(det(X'X / n) of the chosen rows / the same of all candidates)^(1/p): free of the coding, 1 for the full grid."""
    chosen = chosen @ _whitening(candidates)
    sizes = np.linalg.svd(chosen, compute_uv=False) / math.sqrt(len(chosen))
    return float(np.exp(2 * np.mean(np.log(sizes)))) if min(sizes) > 1e-6 and len(chosen) >= len(sizes) else None


def _one_at_a_time(points: Sequence[Point], base: int) -> list[int]:
    axes = dict.fromkeys(axis for point in points for axis in point)
    indices = (
        _changed(points, base, axis, level, {})
        for axis in axes
        for level in dict.fromkeys(point[axis] for point in points if axis in point)
        if level != points[base].get(axis)
    )
    return [index for index in indices if index is not None]


def _leave_one_out(points: Sequence[Point], base: int, reference: Point) -> list[int]:
    first = {axis: level for point in reversed(points) for axis, level in point.items()} | dict(reference)
    indices = (
        _changed(points, base, axis, first[axis], first) for axis, level in points[base].items() if level != first[axis]
    )
    rows = [index for index in indices if index is not None]
    if not rows:
        raise UserError("leave_one_out: the base is the reference on every axis; give a base that differs from it")
    return rows


def _changed(points: Sequence[Point], base: int, axis: str, level: object, likely: Point) -> int | None:
    """The candidate that is the base but for `level` of `axis`; None if the space has none.

    Where the change brings an axis to life, as activation when swiglu goes, that takes its `likely` level if it can.
    """

    def matches(point: Point) -> bool:
        shared = point.keys() & points[base].keys() - {axis}
        return point.get(axis) == level and all(point[other] == points[base][other] for other in shared)

    matching = [index for index, point in enumerate(points) if matches(point)]
    return max(matching, key=lambda index: sum(points[index].get(a) == v for a, v in likely.items()), default=None)


class Draws:
    """Random draws from an integer seed, the same on every machine and numpy version."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def shuffled(self, count: int) -> list[int]:
        """0 to count - 1 in random order."""
        return [int(place) for place in np.argsort(self._bits.random_raw(count), kind="stable")]

    def below(self, bound: int, count: int) -> list[int]:
        """`count` whole numbers of 0 to bound - 1. The modulo's bias is below 1e-13 for any list of candidates."""
        return [int(draw) for draw in self._bits.random_raw(count) % bound]
