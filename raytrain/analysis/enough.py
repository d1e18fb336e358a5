"""Whether a study's runs trained enough to distinguish its variants, and the command whose runs would."""

import shlex

import numpy as np
import pandas as pd

from raytrain.analysis.effects import Effects
from raytrain.analysis.plateau import PLATEAU, Rate
from raytrain.analysis.wording import Told
from raytrain.sweep.budget import FEW, OPTIMAL, Budget
from raytrain.sweep.factorial import Array

_FEW_TRAINED = 0.05  # of the runs on the plateau: more is no accident
_COARSE = 0.1  # nats: a noise that hides what any choice of architecture is worth


def training_of(table: pd.DataFrame) -> Budget | None:
    """What the runs of a study's `table` were trained on, by their medians; None where they did not report it."""
    names = ("tokens", "parameters", "flops_per_token")
    if any(name not in table or table[name].isna().all() for name in names):
        return None
    tokens, parameters, flops_per_token = (float(table[name].astype(float).median()) for name in names)
    return Budget(tokens, parameters, flops_per_token)


def shortfall(table: pd.DataFrame, effects: Effects | None, training: Budget | None, command: str = "") -> Told:
    """That the study cannot answer its question, why, and what would; or that its runs are short; or nothing.

    It cannot where its runs had fewer than 5 tokens a parameter and, as a result, more than a twentieth of them are on
    the plateau, or the noise is above 0.1 nats. `command` is the study's own.
    """
    if training is None or training.tokens_per_parameter >= FEW:
        return Told()
    tokens = f"{training.tokens_per_parameter:.2g} tokens a parameter"
    optimal = f"{OPTIMAL:g} is compute-optimal (Hoffmann et al., arXiv 2203.15556)"
    ended = table[table["status"].isin(("complete", PLATEAU))]
    stuck = Rate(int((ended["status"] == PLATEAU).sum()), len(ended))
    noise = effects.noise.sd if effects and effects.noise else 0.0
    reasons = [f"runs had {tokens}, where {optimal}"]
    reasons += [f"{stuck} of them never left the plateau of token frequencies"] if stuck.count else []
    reasons += [f"what axes and pairs leave over has an sd of {noise:.3g} nats"] if noise > _COARSE else []
    rate = float(table["learning_rate"].astype(float).median()) if "learning_rate" in table else 0.0
    again = _again(command, training.optimal_flops, rate if stuck.count else 0.0)
    if len(ended) and stuck.count / len(ended) <= _FEW_TRAINED and noise <= _COARSE:
        return Told(warnings=[f"Short runs: {tokens}, and {optimal}. Longer ones: {again}"])
    return Told(
        [
            f"This study cannot answer its question: {'; '.join(reasons)}. What could: {again}",
            "What follows is true of runs this short alone.",
        ]
    )


def _again(command: str, flops: float, rate: float) -> str:
    """`command` with the budget `flops`, and three learning rates about `rate` if one is given."""
    words = shlex.split(command) or ["python", "-m", "raytrain.tune"]
    by_size = {"--ladder", "--tokens_per_parameter"} & {*words}
    budget = ("--tokens_per_parameter", f"{OPTIMAL}") if by_size else ("--flops", f"{flops:.2g}")
    if "--name" in words[:-1]:  # that is taken
        place = words.index("--name")
        words = words[:place] + words[place + 2 :]
    for flag, value in (budget, *([("--tune", rates_about(rate))] if rate else [])):
        if flag in words[:-1]:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    return shlex.join(words)


def rates_about(rate: float) -> str:
    """What --tune takes to try the learning rate `rate`, a third of it and three times it."""
    return f"learning_rate={rate / 3:.2g},{rate:.2g},{3 * rate:.2g}"


def late_sentences(curves: pd.DataFrame, variants: pd.Series) -> list[str]:
    """How much the runs still change late: `curves` are evaluations (trial, step, val_loss), `variants` numbers trials.

    The median fall of the loss with a doubling of the run, from each run's last half; and the part of all pairs of
    variants whose means change their order between the evaluation nearest to half of the run and the last.
    """
    slopes: list[float] = []
    rows: list[dict[str, float]] = []
    for trial, own in curves.groupby("trial"):
        steps, losses = own["step"].to_numpy(float), own["val_loss"].to_numpy(float)
        slope = slope_per_doubling(steps, losses)
        if slope is not None:
            slopes.append(slope)
            half = int(np.argmin(np.abs(steps - steps.max() / 2)))
            rows.append({"variant": variants[trial], "half": losses[half], "last": losses[int(np.argmax(steps))]})
    if not slopes:
        return []
    out = f"In the last half of a run the loss still fell by {np.median(slopes):.3g} nats for a doubling of its length"
    means = pd.DataFrame(rows).groupby("variant").mean().to_numpy()
    if len(means) < 2:
        return [f"{out}."]
    first, second = np.triu_indices(len(means), 1)
    crossed = np.prod(np.sign(means[first] - means[second]), axis=1) < 0
    pairs = Rate(int(crossed.sum()), len(crossed))
    return [f"{out}, and {pairs.count} of {pairs.trials} pairs of variants changed their order."]


def slope_per_doubling(steps: Array, losses: Array) -> float | None:
    """By how many nats the loss still falls with a doubling of the run, from its last half; None without two points.

    The slope of loss against log2(step) over the evaluations from half of the last step on.
    """
    late = (steps >= steps.max() / 2) & np.isfinite(losses)
    if late.sum() < 2 or np.ptp(steps[late]) == 0:
        return None
    return float(-np.polyfit(np.log2(steps[late]), losses[late], 1)[0])
