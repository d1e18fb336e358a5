"""The report of a ladder: gains by size, and the sections of each scale."""

import dataclasses
from collections.abc import Sequence

from raytrain.analysis.answer import Answer
from raytrain.analysis.gain import Estimate
from raytrain.report.document import Block, Image, Missing, Section, Table, Text

_DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def sizes_section(answered: Answer) -> Section:
    """A row a variant: its gain at each scale, the trend, the projection and whether it is promoted."""
    return Section("sizes", "Gains by size", [*_gains(answered), *_budgets(answered)])


def _gains(answered: Answer) -> list[Block]:
    found = answered.ladder
    if found is None:
        return [Missing(f"No gains by size: {answered.reasons['ladder']}.")]
    columns = ["variant", *(f"gain at {name} (95%)" for name in found.names), "ln gain for each factor e of size"]
    columns += [f"projected to {found.target}", "promoted"]
    rows = [
        [
            label,
            *(_estimate(gain) for gain in climb.gains.values()),
            _estimate(climb.trend, "+.3f"),
            _estimate(climb.projected),
            "yes" if climb.is_promoted else _DASH,
        ]
        for label, climb in found.climbs.items()
    ]
    text = (
        "The compute that the baseline would need for a variant's loss, over what the variant used, by the baseline's "
        "surface E + A N^-alpha + B D^-beta over all scales. The intervals at the scales hold for all variants and "
        "scales together. A variant is promoted if its gain is above 1 at every scale. A projection assumes that the "
        "trend continues."
    )
    return [Text(text), Table(columns, rows, texts=(0, len(columns) - 1))]


def _budgets(answered: Answer) -> list[Block]:
    plans = answered.study["plan"]["ladder"]["scales"]
    rows = [
        [
            name,
            f"{plan['training']['parameters']:,}",
            f"{plan['training']['tokens_per_parameter']:.3g}",
            f"{plan['training']['steps']:,}",
            f"{plan['budget_flops']:.4g}",
            f"{plan['counts']['trials']}",
            f"{plan['total_flops']:.4g}",
        ]
        for name, plan in plans.items()
    ]
    columns = ["scale", "parameters", "tokens a parameter", "steps", "model FLOPs each", "trials", "FLOPs in all"]
    return [Text("The scales, by the base:"), Table(columns, rows)]


def _estimate(estimate: Estimate, form: str = ".3f") -> str:
    if estimate.value is None:
        return _DASH
    value, low, high = (
        "?" if end is None else format(end, form).replace("-", _MINUS)
        for end in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})"


def at_scale(scale: str, sections: Sequence[Section]) -> list[Section]:
    """`sections` of one scale, with it in their titles, their links and the names of their pictures."""
    return [
        Section(f"{one.id}-{_plain(scale)}", f"{one.title} at {scale}", [_named(block, scale) for block in one.blocks])
        for one in sections
    ]


def _named(block: Block, scale: str) -> Block:
    return dataclasses.replace(block, name=f"{block.name}_{_plain(scale)}") if isinstance(block, Image) else block


def _plain(scale: str) -> str:
    return scale.replace(".", "_")
