"""Which learning rates a tuned study adds: where a variant was best at the last one tried."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from raytrain.analysis.ranking import programs
from raytrain.analysis.trials import OWN_ROLES, RATE
from raytrain.analysis.tuned import tuned_fields, variant_curves
from raytrain.sweep.stages import Stage, fresh_seeds, run_again
from raytrain.sweep.trial import trials_of


@dataclasses.dataclass(frozen=True)
class _Added:
    """The rate `rate` for variants that are best at the end `end`, each by the trial that its runs are made after."""

    rate: float
    end: float
    templates: list[str]


def extend(study: Mapping[str, Any], table: pd.DataFrame) -> Stage | None:
    """The stage that runs each variant that is best at an end of its learning rates at one more there.

    The new rate is as far from the end as the last two rates tried are from each other, and has as many seeds as the
    end has, which are fresh and the same for all variants. `table` is that of `ranking.read_study`. None where no best
    rate is at an end, or the study does not run every variant at every rate.
    """
    fields = tuned_fields(table)
    if RATE not in fields:
        return None
    rows = table[table["role"].isin(OWN_ROLES)].reset_index(drop=True)
    variant = pd.Series(pd.factorize(programs(rows, without=fields))[0])
    added = _added(rows, variant, fields)
    if not added:
        return None
    planned = {trial.id: trial for trial in trials_of(study)}
    count = int(rows.groupby([variant, *fields])["seed"].nunique().max())
    seeds = iter(fresh_seeds(planned.values(), count * len(added)))
    trials = []
    for one in added:
        for seed in [next(seeds) for _ in range(count)]:
            for name in one.templates:
                tuned = dict(planned[name].tuned) | {RATE: one.rate}
                trials.append(run_again(planned[name], seed, stage="extend", role="extend", tuned=tuned))
    reason = "; ".join(
        f"{len(one.templates)} of {variant.nunique()} variants were best at {one.end:g}, the last learning rate tried, "
        f"and run at {one.rate:g} too"
        for one in added
    )
    facts = [{"learning_rate": one.rate, "beyond": one.end, "variants": len(one.templates)} for one in added]
    return Stage("extend", trials, f"{reason}.", {"added": facts})


def _added(rows: pd.DataFrame, variant: pd.Series, fields: list[str]) -> list[_Added]:
    fitted = variant_curves(rows, variant, fields)
    out: dict[float, _Added] = {}
    for number, curve in sorted(fitted.curves.items()):
        if curve.edge not in ("lowest", "highest"):
            continue
        own = rows[(variant == number).to_numpy()]
        for field, level in fitted.settings[number].items():
            own = own[own[field] == level]
        rates = np.unique(own[RATE].astype(float))
        end, before = (rates[-1], rates[-2]) if curve.edge == "highest" else (rates[0], rates[1])
        rate = float(f"{end * end / before:.6g}")
        template = own.loc[own[RATE] == end, "trial"].iloc[0]
        out.setdefault(rate, _Added(rate, float(end), [])).templates.append(str(template))
    return [one for rate, one in sorted(out.items()) if math.isfinite(rate)]
