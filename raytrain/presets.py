"""`python -m raytrain.presets`: the presets, their axes, and what they cost at a scale."""

import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from raytrain.accounting.flops import flops_per_token, parameter_count
from raytrain.architecture import AXES, PRESET_NOTES, PRESETS, SCALES, preset
from raytrain.axes import RUN_AXES
from raytrain.config.flags import add_plugin_flag
from raytrain.errors import Parser, command, unknown_value
from raytrain.plugins.loader import load_named
from raytrain.tables import fit

_BYTES = 256  # the vocabulary of the default corpus, for the scales that leave it to the data


def list_presets() -> dict[str, str]:
    """Print the presets, a line each with a note of what it is; return name -> note."""
    print("\n".join(f"{name:<12} {note}" for name, note in PRESET_NOTES.items()))
    return dict(PRESET_NOTES)


def preset_table(scale: str = "124m") -> list[dict[str, Any]]:
    """A row a preset: preset, name, the axes, parameters, flops_per_token (training), attention_ffn_ratio, note.

    `custom`, whose axes the user gives, has only a name and a note. Raises UserError for an unknown `scale`.
    """
    if scale not in SCALES:
        raise unknown_value("scale", scale, SCALES)
    size = {"vocab_size": _BYTES} | SCALES[scale]
    rows: list[dict[str, Any]] = []
    for key, axes in PRESETS.items():
        row: dict[str, Any] = {"preset": key}
        if axes:
            arch = preset(key, **size)
            flops = flops_per_token(arch)
            row |= {"name": arch.name} | {axis: arch.value(axis) for axis in AXES}
            row |= {"parameters": parameter_count(arch)["total"], "flops_per_token": flops.total}
            row |= {"attention_ffn_ratio": flops.attention_ffn_ratio}
        rows.append(row | {"note": PRESET_NOTES[key]})
    return rows


@command
def main(argv: list[str] | None = None) -> int | None:
    """List the presets."""
    load_named(argv)
    parser = Parser("python -m raytrain.presets", __doc__)
    add_plugin_flag(parser)
    parser.add_argument("--scale", default="124m", help=f"{', '.join(SCALES)} [124m]")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    flags = parser.parse_args(argv)
    rows = preset_table(flags.scale)
    if flags.json:
        print(json.dumps(rows, indent=1))
        return 0

    size = f"{SCALES[flags.scale]['n_layer']}L-{SCALES[flags.scale]['n_head']}H-{SCALES[flags.scale]['n_embd']}D-"
    title = f"Presets at scale {flags.scale}: names begin with {size}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=0)
    for heading in ("preset", "name", "bias", "tied"):
        table.add_column(heading, no_wrap=True)
    for heading in ("parameters", "training\nGFLOPs\n/token", "attn\n/FFN"):
        table.add_column(heading, justify="right")
    for row in rows[:-1]:
        table.add_row(
            row["preset"],
            row["name"].removeprefix(size),
            "yes" if row["bias"] else "no",
            "yes" if row["weight_tying"] else "no",
            f"{row['parameters']:,}",
            f"{row['flops_per_token'] / 1e9:.3g}",
            f"{row['attention_ffn_ratio']:.2f}",
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(fit(table, console, ("attn\n/FFN", "bias", "tied", "parameters")), soft_wrap=False)
    for preset_name, note in PRESET_NOTES.items():
        console.print(f"  {preset_name:<12} {note}")
    console.print(
        "\nAll: attention_backend sdpa, dropout 0. Any axis can be overridden: --preset gpt2 --normalization rmsnorm"
    )
    for name, axis in (AXES | RUN_AXES).items():
        for level in axis.levels.values():
            if level.plugin and level.value != axis.default:
                console.print(f"  --{name} {level.value}   of plugin {level.plugin}", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
