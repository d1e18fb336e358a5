"""The plan of a ladder: the same variants at several scales, each scale with a budget of its own. Pure.

In study.json its plan has `ladder`: the plan of each scale, and the size that gains are projected to. Trials tell their
scale in their config, and are compared with those of that scale alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from raytrain.accounting.flops import flops_per_token, parameter_count
from raytrain.architecture import Architecture
from raytrain.sweep.budget import FEW, OPTIMAL
from raytrain.sweep.estimate import duration
from raytrain.sweep.plan import Plan

# Of each scale's budget, what the baseline runs at too. With two scales that makes six settings of size and tokens, for
# the five coefficients of L(N, D): see raytrain.analysis.ladder.
FRONTIER = (0.5, 2.0)


@dataclasses.dataclass(frozen=True)
class Target:
    """The size that gains are projected to: that of the base at `scale`."""

    scale: str
    parameters: int
    flops_per_token: int

    @classmethod
    def of(cls, scale: str, arch: Architecture) -> "Target":
        return cls(scale, parameter_count(arch)["total"], flops_per_token(arch).total)


@dataclasses.dataclass(frozen=True)
class LadderPlan(Plan):
    """The plans of all scales as one, from the smallest scale up; what they differ in is that of the largest."""

    plans: tuple[Plan, ...] = ()
    target: Target | None = None

    def to_dict(self) -> dict[str, Any]:
        own = {plan.scale: plan.to_dict() | {"counts": plan.counts} for plan in self.plans}
        target = self.target and dataclasses.asdict(self.target)
        return super().to_dict() | {"ladder": {"scales": own, "project_to": target}}

    def _budgets(self) -> list[str]:
        return [line for plan in self.plans for line in _scale_lines(plan)] + [
            *self._warning(),
            f"budget      {self.total_flops:.4g} model FLOPs in all",
        ]

    def _about(self) -> list[str]:
        assert self.target is not None
        return [
            f"ladder      {', '.join(plan.scale for plan in self.plans)}: trials are compared within a scale, and "
            f"gains projected to {self.target.scale} ({self.target.parameters:,} parameters)"
        ]

    def _long(self) -> list[str]:
        return []  # each scale has a budget of its own

    def _warning(self) -> list[str]:
        tokens = min(plan.budget.tokens_per_parameter for plan in self.plans if plan.budget)
        if tokens >= FEW:
            return []
        return [
            f"warning     below {FEW} tokens per parameter models still leave the plateau; {OPTIMAL} is "
            f"compute-optimal (Hoffmann et al., arXiv 2203.15556): --tokens_per_parameter {OPTIMAL}"
        ]


def _scale_lines(plan: Plan) -> list[str]:
    budget, estimate = plan.budget, plan.estimate
    assert budget is not None
    return [
        f"{plan.scale:<11} {budget.parameters:,} parameters (the base), {budget.tokens_per_parameter:.3g} tokens a "
        f"parameter: {budget.tokens:,} tokens in {budget.steps:,} steps, {plan.budget_flops:.4g} model FLOPs each",
        *budget.repeats(),
        f"            {len(plan.trials)} trials, {plan.total_flops:.4g} FLOPs, about {duration(estimate.seconds)}; "
        f"FLOPs/token {plan.spread}",
    ]


def ladder_plan(plans: Sequence[Plan], target: Target) -> LadderPlan:
    """One plan of `plans`, a scale each, smallest first: their trials in that order, and their sums."""
    last = plans[-1]
    estimates, trials = [plan.estimate for plan in plans], tuple(trial for plan in plans for trial in plan.trials)
    total = sum(plan.total_flops for plan in plans)
    estimate = dataclasses.replace(
        last.estimate,
        seconds=sum(estimate.seconds for estimate in estimates),
        memory=max(estimate.memory for estimate in estimates),
    )
    changes: dict[str, Any] = {"scale": ",".join(plan.scale for plan in plans), "estimate": estimate}
    if last.tuning is not None:
        changes["tuning"] = dataclasses.replace(last.tuning, trials=len(trials), flops=total)
    shared = {field.name: getattr(last, field.name) for field in dataclasses.fields(Plan)}
    return LadderPlan(**shared | changes | {"trials": trials, "total_flops": total}, plans=tuple(plans), target=target)


def by_scale(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`study` (study.json) as one study for each of its scales, smallest first; a study of one scale as it is."""
    ladder = (study.get("plan") or {}).get("ladder")
    if not ladder:
        return [dict(study)]
    return [_at(study, scale, plan) for scale, plan in ladder["scales"].items()]


def _at(study: Mapping[str, Any], scale: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: plan[name] for name in ("budget_flops", "counts", "axes", "baseline", "factors", "scheduler")}
    own["trials"] = [trial for trial in study["trials"] if trial["config"]["scale"] == scale]
    if (command := study["command"]) and "--ladder" not in command:  # the space has it
        own["command"] = f"{command} --ladder {study['scale']}"
    return dict(study) | own | {"scale": scale, "plan": plan}
