"""The pictures of a report: effects, interactions, loss against FLOPs, loss against speed.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which remain distinct to the colour-blind. Markers,
line styles or printed signs carry the same information in grey print. A figure is as wide as a phone's page where its
content allows.
"""

import base64
import dataclasses
import io
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from raytrain.analysis.gain import Frontier
from raytrain.analysis.noise import SIGNIFICANCE, Noise
from raytrain.rundir.folders import write_whole

BLUE, VERMILLION, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#767676", "#222222"
_PALE = "#E4E4E4"
_DIVERGING = LinearSegmentedColormap.from_list("better_worse", [BLUE, "#FFFFFF", VERMILLION])
_WIDTH = 5.0  # inches; 480 CSS pixels
_START, _BINS = 0.2, 60  # of a learning curve: the part left out, and the points of the whole
_NAMED, _NAME_LENGTH = 8, 34  # points with a name at most, and the letters of one line of it
_LINE_POINTS = 11.0  # between the names of two points
# An axis is linear up to two half-widths of the intervals (rounded up to a power of ten) and logarithmic beyond, if the
# largest effect is 5 times that, and 10 times the median effect.
_SMALL, _LARGE, _APART = 2.0, 5.0, 10.0
_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so text is as wide everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 9,
    "axes.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "text.color": BLACK,
    "text.parse_math": False,  # a label is text, whatever signs are in it
    "svg.hashsalt": "raytrain",  # the same study gives the same file
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn figure as its two files' contents; `width` in CSS pixels."""

    svg: bytes
    png: bytes
    width: int

    @property
    def data_uri(self) -> str:
        """The SVG as the address of an image, which needs no file and runs no script."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.png

    def save(self, path: str | Path) -> list[Path]:
        """Write `path` with the endings .svg and .png; the two files."""
        path = Path(path)
        files = [path.with_suffix(".svg"), path.with_suffix(".png")]
        for file, content in zip(files, (self.svg, self.png), strict=True):
            write_whole(file, content)
        return files


def effects_picture(effects: pd.DataFrame, noise: Noise | None) -> Picture:
    """A forest plot of the main effects in `effects` (the table of `Effects`), by axis, with their 95% intervals.

    Without p-values no effect is marked significant.
    """
    main = effects[effects["other_axis"].isna()]
    axes = list(dict.fromkeys(main["axis"]))
    with matplotlib.rc_context(_STYLE):
        rows = len(main) + len(axes)
        figure, ax = _figure(0.24 * rows + 1.6)
        place, ticks, names = 0.0, [], []
        for axis in axes:
            group = main[main["axis"] == axis]
            heading = f"{axis}, against {group['reference'].iloc[0]}"
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            ax.text(0, place, heading, **_beside(ax, "left"), weight="bold", bbox=white)
            place += 1
            for row in group.to_dict("records"):
                _effect(ax, row, place)
                ticks.append(place)
                names.append(str(row["level"]))
                place += 1
        ax.set_ylim(place - 0.3, -0.7)
        ax.set_yticks(ticks, names)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.axvline(0, color=BLACK, linewidth=0.8, zorder=1)
        _effect_scale(ax, main)
        if noise is not None:
            wide = noise.t * noise.sd * np.sqrt(2)
            ax.axvspan(-wide, wide, color=_PALE, zorder=0, linewidth=0)
        ax.set_xlabel("effect on val_loss, nats (left of 0 is better)")
        significant = main["p_holm"] < SIGNIFICANCE
        handles: list[Artist] = []
        for mask, marker, color, face, label in (
            (significant & (main["estimate"] < 0), "o", BLUE, BLUE, "better"),
            (significant & (main["estimate"] > 0), "s", VERMILLION, VERMILLION, "worse"),
            (~significant & main["p_holm"].notna(), "D", GREY, "white", "not distinguishable from zero"),
            (main["p_holm"].isna() & main["estimate"].notna(), "D", GREY, "white", "no claim"),
        ):
            if mask.any():
                handles += ax.plot([], [], marker=marker, color=color, markerfacecolor=face, label=label)
        if noise is not None:
            handles.append(Patch(color=_PALE, label="two single runs differ by less (95%)"))
        figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=1.5)
        return _draw(figure)


def interactions_picture(effects: pd.DataFrame) -> Picture:
    """A heat map of the interactions in `effects` (the table of `Effects`), in mnats: below the diagonal of levels."""
    main, pairs = effects[effects["other_axis"].isna()], effects[effects["other_axis"].notna()]
    levels = [f"{axis}={level}" for axis, level in zip(main["axis"], main["level"], strict=True)]
    place = {name: index for index, name in enumerate(levels)}
    cells = {}
    for row in pairs.to_dict("records"):
        sides = (place[f"{row['axis']}={row['level']}"], place[f"{row['other_axis']}={row['other_level']}"])
        cells[max(sides), min(sides)] = row
    down = sorted({row for row, _ in cells})
    across = sorted({column for _, column in cells})
    largest = np.fmax(pairs["estimate"].abs().max(), (pairs["high"] - pairs["low"]).median())  # noise alone stays pale
    scale = Normalize(-largest, largest) if largest > 0 else Normalize(-1, 1)
    with matplotlib.rc_context(_STYLE):
        longest = max(len(name) for name in levels)
        cell, label = 0.5, 0.083 * longest
        size = (max(label + cell * len(across) + 0.3, _WIDTH), label + 0.32 * len(down) + 1.3)
        figure, ax = _figure(size[1], size[0])
        for y, row_level in enumerate(down):
            for x, column_level in enumerate(across):
                _cell(ax, x, y, cells.get((row_level, column_level)), scale)
        ax.set_xlim(-0.5, len(across) - 0.5)
        ax.set_ylim(len(down) - 0.5, -0.5)
        ax.set_xticks(range(len(across)), [levels[index] for index in across], rotation=90)
        ax.set_yticks(range(len(down)), [levels[index] for index in down])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        handles = [
            Patch(facecolor=_DIVERGING(0.15), label="\N{MINUS SIGN} better together"),
            Patch(facecolor=_DIVERGING(0.85), label="+ worse together"),
            Patch(facecolor="white", edgecolor=BLACK, linewidth=1.6, label="distinguishable from zero"),
            Patch(facecolor="white", edgecolor=GREY, hatch="////", label="not estimable"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=1.5)
        return _draw(figure)


def frontier_picture(table: pd.DataFrame, frontier: Frontier | None, flops: str = "train_flops") -> Picture:
    """val_loss against the FLOPs in the column `flops`, with the baseline's frontier and its 95% band.

    `table` has a row a trial: `val_loss`, `status`, `is_baseline`, `flops` and `short_name`, which points are named by.
    """
    with matplotlib.rc_context(_STYLE):
        figure, ax = _figure(3.9)
        shown = table[table["val_loss"].notna() & table[flops].notna()]
        _scatter(ax, shown, flops)
        others = shown[~shown["is_baseline"]].sort_values("val_loss").drop_duplicates("short_name")
        if frontier is not None:
            x = np.geomspace(frontier.low, frontier.high, 100)
            floor, scale, alpha = frontier.draws[:3, :, None]
            losses = floor + scale * (x / frontier.unit) ** -alpha
            low, high = np.quantile(losses, [SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2], axis=0)
            ax.fill_between(x, low, high, color=BLUE, alpha=0.18, linewidth=0, label="its 95% band", zorder=1)
            ax.plot(x, [frontier.loss(value) for value in x], color=BLUE, label="baseline's frontier", zorder=2)
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        low, high = table[flops].min(), table[flops].max()
        if high / low < 20:  # too few powers of ten to read an axis by
            ax.set_xticks(np.geomspace(low, high, 4))
            ax.minorticks_off()
        _name_points(ax, others, flops, others.index[:1])
        ax.set_xlabel("hardware FLOPs" if flops == "hardware_flops" else "model FLOPs")
        ax.set_ylabel("val_loss, nats per token")
        figure.legend(loc="outside lower center", ncols=2, handlelength=1.5)
        return _draw(figure)


def curves_picture(runs: pd.DataFrame) -> Picture:
    """The training loss of each `variant` in `runs` (of `learning_curves`) against the FLOPs spent."""
    spent = runs["train_flops"].astype(float)
    late = runs[spent >= _START * spent.max()]
    with matplotlib.rc_context(_STYLE):
        figure, ax = _figure(3.9)
        styles = zip(late.groupby("variant", sort=False), (BLUE, BLACK, VERMILLION), ("-", "--", "-."), strict=False)
        for (name, own), color, line in styles:
            steps = own[own["loss"].notna()]
            bins = np.ceil(_BINS * steps["train_flops"].astype(float) / spent.max())
            mean = steps.astype({"train_flops": float, "loss": float}).groupby(bins)[["train_flops", "loss"]].mean()
            ax.plot(mean["train_flops"], mean["loss"], color=color, linestyle=line, linewidth=1.4, label=str(name))
            scores = own[own["val_loss"].notna()].astype({"train_flops": float, "val_loss": float})
            at_end = scores.groupby("train_flops")["val_loss"].mean()
            ax.plot(at_end.index, at_end, linestyle="", marker="x", color=color)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel("model FLOPs")
        ax.set_ylabel("loss, nats per token")
        figure.legend(loc="outside lower center", ncols=1, handlelength=2.5)
        return _draw(figure)


def speed_picture(table: pd.DataFrame, speed: str = "mfu", faster: float | None = 1.01) -> Picture:
    """val_loss against the column `speed`, mfu or tokens_per_second. A line joins the rows that none beats in both, if
    they are several; of two speeds one is higher if it is by the factor `faster`, and with None there is no line.

    `table` as in `frontier_picture`, with `speed`; and `short_name`, which points are named by.
    """
    shown = table[table["val_loss"].notna() & table[speed].notna()]
    with matplotlib.rc_context(_STYLE):
        figure, ax = _figure(3.9)
        _scatter(ax, shown, speed, "variant")
        best = shown.sort_values(["val_loss", speed], ascending=[True, False], kind="stable")
        best = best[best[speed] > (faster or np.inf) * best[speed].cummax().shift(fill_value=0)]
        if len(best) > 1:
            style: Any = {"color": BLACK, "linewidth": 1, "linestyle": "--"}
            ax.plot(best[speed], best["val_loss"], label="best trade-off", zorder=1, **style)
        ax.margins(x=0.14, y=0.1)
        _name_points(ax, shown, speed, best.index)
        if speed == "mfu":
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        else:
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel("MFU" if speed == "mfu" else "tokens per second")
        ax.set_ylabel("val_loss, nats per token")
        figure.legend(loc="outside lower center", ncols=2, handlelength=1.5)
        return _draw(figure)


def _name_points(ax: Axes, table: pd.DataFrame, x: str, first: pd.Index) -> None:
    """Name the points of `table`: all if they are few; else those `first`, then the baseline and the last of all."""
    base = table.index[table["is_baseline"]]
    rows = table.loc[list(dict.fromkeys([*first[:1], *base, *table.index[-1:], *first, *table.index]))]
    rows = rows if len(table) <= _NAMED else rows.head(min(_NAMED, len(first) + 2))  # a crowd reads as none
    rows = rows.sort_values("val_loss")
    per_point = 72 / ax.figure.dpi
    low, high = ax.get_xlim()
    below = -np.inf
    for row in rows.to_dict("records"):
        where = (row[x], row["val_loss"])
        name = textwrap.wrap(row["short_name"], _NAME_LENGTH)
        height = ax.transData.transform(where)[1] * per_point
        half = len(name) * _LINE_POINTS / 2
        lift = max(0.0, below + half - height)  # above the name before
        below = height + lift + half
        is_right = row[x] > (low + high) / 2
        ax.annotate(
            "\n".join(name),
            where,
            xytext=(-6 if is_right else 6, lift),
            textcoords="offset points",
            ha="right" if is_right else "left",
            va="center",
            fontsize=7.5,
        )


def _figure(height: float, width: float = _WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _draw(figure: Figure) -> Picture:
    files = {form: io.BytesIO() for form in ("svg", "png")}
    figure.savefig(files["svg"], format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(files["png"], format="png", dpi=200, metadata={"Software": None})
    return Picture(files["svg"].getvalue(), files["png"].getvalue(), round(figure.get_figwidth() * 96))


def _beside(ax: Axes, side: str) -> dict[str, Any]:
    """Where a text goes whose x counts from the axes' left edge (0) to the right (1), and y as the data."""
    return {"transform": ax.get_yaxis_transform(), "ha": side, "va": "center", "fontsize": 9}


def _effect(ax: Axes, row: dict[Any, Any], y: float) -> None:
    estimate, low, high = row["estimate"], row["low"], row["high"]
    if np.isnan(estimate):
        ax.text(1, y, "not estimable", **_beside(ax, "right"), color=GREY, style="italic")
        return
    significant = row["p_holm"] < SIGNIFICANCE
    color, marker = ((BLUE, "o") if estimate < 0 else (VERMILLION, "s")) if significant else (GREY, "D")
    if not np.isnan(low):
        ax.plot([low, high], [y, y], color=color, linewidth=1.6, solid_capstyle="butt", zorder=2)
    face = color if significant else "white"
    ax.plot([estimate], [y], marker=marker, color=color, markerfacecolor=face, markersize=5, zorder=3)


def _effect_scale(ax: Axes, main: pd.DataFrame) -> None:
    """A linear axis; one that is logarithmic beyond the small effects where a large one would hide them."""
    sizes, widths = main["estimate"].abs(), (main["high"] - main["low"]) / 2
    small, largest = (widths if widths.notna().any() else sizes).median(), sizes.max()
    linear = 10 ** np.ceil(np.log10(_SMALL * small)) if small > 0 else np.inf
    if not largest > max(_LARGE * linear, _APART * sizes.median()):
        ax.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        return
    ax.set_xscale("symlog", linthresh=linear, linscale=1)
    low, high = ax.get_xlim()
    decades = linear * 10.0 ** np.arange(np.ceil(np.log10(largest / linear)) + 1)
    ticks = [tick for tick in (*-decades[::-1], 0, *decades) if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_title(f"linear to \N{PLUS-MINUS SIGN}{linear:.3g}, logarithmic beyond", loc="right", color=GREY)


def _cell(ax: Axes, x: int, y: int, row: dict[Any, Any] | None, scale: Normalize) -> None:
    if row is None:  # above the diagonal, or two levels that never meet
        return
    estimate = row["estimate"]
    significant = row["p_holm"] < SIGNIFICANCE
    frame: Any = {"linewidth": 1.6 if significant else 0.4, "edgecolor": BLACK if significant else GREY}
    if np.isnan(estimate):
        ax.add_patch(Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, facecolor="white", hatch="////", **frame))
        return
    color = _DIVERGING(scale(estimate))
    ax.add_patch(Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, facecolor=color, **frame))
    red, green, blue, _ = color
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    weight = "bold" if significant else "normal"
    text = format(1000 * estimate, "+.1f" if abs(estimate) < 0.1 else "+.0f").replace("-", "\N{MINUS SIGN}")
    ax.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if is_dark else BLACK, weight=weight)


def _scatter(ax: Axes, table: pd.DataFrame, x: str, what: str = "trial") -> None:
    stopped, baseline = table["status"] != "complete", table["is_baseline"]
    for mask, label, marker, color, face in (
        (~stopped & ~baseline, what, "o", VERMILLION, "white"),
        (stopped & ~baseline, f"{what}, stopped at a rung", "v", GREY, "white"),
        (baseline, "baseline", "s", BLUE, BLUE),
    ):
        part = table[mask]
        if len(part):
            style: Any = {"markersize": 5 if len(table) < 100 else 3.5, "markerfacecolor": face, "markeredgewidth": 1}
            ax.plot(part[x], part["val_loss"], linestyle="", marker=marker, color=color, label=label, **style)
