import io
import xml.etree.ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raytrain.analysis.gain import fit_frontier
from raytrain.analysis.noise import Noise
from raytrain.report import plots

NOISE = Noise(0.002, 10, "seeds")


def effects(*rows, pairs=()):
    """(axis, level, estimate[, p]) and (axis, level, other axis, other level, estimate)."""
    out = [
        {"axis": axis, "level": level, "reference": "base", "estimate": estimate, "p_holm": p[0] if p else 0.5}
        for axis, level, estimate, *p in rows
    ]
    out += [
        {"axis": a, "level": b, "other_axis": c, "other_level": d, "estimate": estimate, "p_holm": 0.5}
        for a, b, c, d, estimate in pairs
    ]
    table = pd.DataFrame(out, columns=["axis", "level", "reference", "other_axis", "other_level", "estimate", "p_holm"])
    return table.assign(low=table["estimate"] - 0.001, high=table["estimate"] + 0.001)


def trials(**columns):
    out = pd.DataFrame({"status": "complete", "is_baseline": False} | columns)
    return out.assign(short_name=[f"v{number}" for number in range(len(out))])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, to look at."""
    figures, draw = [], plots._draw

    def watch(figure):
        figures.append(figure)
        return draw(figure)

    monkeypatch.setattr(plots, "_draw", watch)
    return figures


def texts(figure):
    return [text.get_text() for text in figure.findobj(plots.matplotlib.text.Text) if text.get_text()]


def test_every_main_effect_is_drawn_where_it_is(drawn):
    """Would catch: an effect beside another's name, a lost one, or an interval of another width."""
    rows = [("a", f"l{i}", 0.001 * i) for i in range(8)] + [("b", "m", -0.004)]
    plots.effects_picture(effects(*rows), NOISE)
    (ax,) = drawn[0].axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [level for _, level, _ in rows]
    points = {
        line.get_ydata()[0]: line.get_xdata()[0]
        for line in ax.lines
        if line.get_marker() == "D" and len(line.get_xdata())
    }
    assert [points[y] for y in ax.get_yticks()] == pytest.approx([estimate for *_, estimate in rows])
    bars = [line.get_xdata() for line in ax.lines if line.get_linewidth() == 1.6 and len(line.get_xdata()) == 2]
    assert [bar[1] - bar[0] for bar in bars] == pytest.approx([0.002] * 9)
    low, high = sorted(ax.get_ylim())
    assert low < min(ax.get_yticks()) <= max(ax.get_yticks()) < high


def test_better_and_worse_differ_in_more_than_colour(drawn):
    """Would catch: a picture that the colour-blind, or a grey print, cannot tell better from worse in."""
    plots.effects_picture(effects(("a", "x", -0.01, 0.001), ("a", "y", 0.01, 0.001), ("a", "z", 0.0)), None)
    (ax,) = drawn[0].axes
    marks = [line.get_marker() for line in ax.lines if line.get_marker() != "None" and len(line.get_xdata())]
    assert marks == ["o", "s", "D"]


def test_effects_without_an_estimate_say_so(drawn):
    """Would catch: an aliased effect drawn at zero."""
    plots.effects_picture(effects(("a", "x", np.nan), ("a", "y", 0.01)), NOISE)
    assert "not estimable" in texts(drawn[0])


def test_one_large_effect_does_not_hide_the_others(drawn):
    """Would catch: all effects but one on top of zero."""
    plots.effects_picture(effects(("a", "x", 0.5), ("a", "y", 0.003), ("a", "z", -0.003)), NOISE)
    (ax,) = drawn[0].axes
    x = ax.transAxes.inverted().transform(ax.transData.transform([(0, 0), (0.003, 0), (0.5, 0)]))[:, 0]
    assert x[1] - x[0] > 0.05
    assert x[2] < 1
    assert any("logarithmic" in text for text in texts(drawn[0]))


def test_comparable_effects_are_on_a_linear_axis(drawn):
    """Would catch: a logarithm that nobody needs."""
    plots.effects_picture(effects(("a", "x", 0.02), ("a", "y", 0.01), ("a", "z", -0.01)), NOISE)
    assert drawn[0].axes[0].get_xscale() == "linear"


def test_each_interaction_is_in_the_cell_of_its_levels(drawn):
    """Would catch: rows for columns, a sign lost, or a cell that is empty as its effect is aliased."""
    main = [(axis, "1", 0.0) for axis in "abc"]
    pairs = [("a", "1", "b", "1", -0.0042), ("a", "1", "c", "1", 0.0123), ("b", "1", "c", "1", np.nan)]
    plots.interactions_picture(effects(*main, pairs=pairs))
    (ax,) = drawn[0].axes
    across = [label.get_text() for label in ax.get_xticklabels()]
    down = [label.get_text() for label in ax.get_yticklabels()]
    cells = {(down[round(t.get_position()[1])], across[round(t.get_position()[0])]): t.get_text() for t in ax.texts}
    assert cells == {("b=1", "a=1"): "\N{MINUS SIGN}4.2", ("c=1", "a=1"): "+12.3"}
    assert sum(patch.get_hatch() is not None for patch in ax.patches) == 1


def test_what_may_be_noise_is_pale(drawn):
    """Would catch: colours as strong as those of any effect for interactions far smaller than their intervals."""
    for estimate, least in ((0.0002, 0.85), (-0.02, 0.0)):  # the intervals are +-0.001
        plots.interactions_picture(effects(("a", "1", 0), ("b", "1", 0), pairs=[("a", "1", "b", "1", estimate)]))
        (cell,) = drawn.pop().axes[0].patches
        assert least <= min(cell.get_facecolor()[:3]) <= least + 0.1


def test_a_heat_map_of_many_levels_grows():
    """Would catch: forty interactions in cells too small for their numbers."""
    names = [(f"axis_{i}", "level") for i in range(14)]
    pairs = [(*names[i], *names[j], 0.001 * i) for j in range(14) for i in range(j)]
    few = plots.interactions_picture(effects(*((*name, 0.0) for name in names[:3]), pairs=pairs[:3]))
    many = plots.interactions_picture(effects(*((*name, 0.0) for name in names), pairs=pairs))
    assert few.width == 480
    assert many.width > 40 * 13


def test_the_frontier_is_drawn_between_its_ends_alone(drawn):
    """Would catch: an extrapolated curve, a band that does not hold it, or trials left out."""
    flops = np.repeat([1e14, 4e14, 1.6e15, 6.4e15], 2)
    losses = 2 + 1.5 * (flops / 1e15) ** -0.2 + np.random.default_rng(0).normal(0, 0.002, 8)
    frontier = fit_frontier(flops, losses)
    plots.frontier_picture(trials(train_flops=flops, val_loss=losses, is_baseline=True), frontier)
    (ax,) = drawn[0].axes
    curve = next(line for line in ax.lines if line.get_label() == "baseline's frontier")
    assert (min(curve.get_xdata()), max(curve.get_xdata())) == pytest.approx((1e14, 6.4e15))
    band = ax.collections[0].get_paths()[0]
    assert all(band.contains_point((x, y), radius=1e-9) for x, y in list(zip(*curve.get_data(), strict=True))[1:-1:20])
    assert len(next(line for line in ax.lines if line.get_label() == "baseline").get_xdata()) == 8


def test_the_trade_off_joins_what_none_beats(drawn):
    """Would catch: a line through variants that others beat in speed and in loss, or through the worst ones."""
    table = trials(mfu=[0.3, 0.4, 0.5, 0.35], val_loss=[3.0, 3.1, 3.3, 3.2])
    plots.speed_picture(table)
    (ax,) = drawn[0].axes
    line = next(line for line in ax.lines if line.get_label() == "best trade-off")
    assert list(line.get_xdata()) == [0.3, 0.4, 0.5]
    assert {"v0", "v1", "v2", "v3"} <= set(texts(drawn[0]))


@pytest.mark.parametrize("faster", [None, 1.5])
def test_no_trade_off_through_the_clock_s_noise(drawn, faster):
    """Would catch: a line that joins variants whose speeds differ by no more than two runs of one do."""
    plots.speed_picture(trials(mfu=[0.3, 0.31, 0.32], val_loss=[3.0, 3.1, 3.3]), faster=faster)
    assert "best trade-off" not in [line.get_label() for line in drawn[0].axes[0].lines]


def test_of_many_points_those_that_matter_have_a_name(drawn):
    """Would catch: forty names on top of one another, or none."""
    many = trials(mfu=np.linspace(0.2, 0.5, 40), val_loss=np.linspace(2, 3, 40), is_baseline=[False] * 39 + [True])
    plots.speed_picture(many)
    named = [text.get_text() for text in drawn[0].axes[0].texts]
    assert 3 <= len(named) <= 8
    assert "v39" in named


def test_files_and_fidelity(tmp_path):
    """Would catch: an SVG that is no XML or leans on fonts or files elsewhere, a PNG too coarse to print."""
    picture = plots.effects_picture(effects(("a", "$x^2$ <&>", 0.01)), NOISE)
    files = picture.save(tmp_path / "effects")
    assert [file.name for file in files] == ["effects.svg", "effects.png"]
    root = xml.etree.ElementTree.fromstring(files[0].read_bytes())
    links = [value for node in root.iter() for name, value in node.attrib.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)
    assert not root.findall(".//{http://www.w3.org/2000/svg}text")
    assert not root.findall(".//{http://www.w3.org/2000/svg}script")
    assert Image.open(io.BytesIO(picture.png)).width == 1000
    assert picture.data_uri.startswith("data:image/svg+xml;base64,")


def test_the_style_stays_here():
    """Would catch: a report that changes how the caller's own figures look."""
    before = {name: plots.matplotlib.rcParams[name] for name in plots._STYLE}
    plots.effects_picture(effects(("a", "x", 0.01)), NOISE)
    assert {name: plots.matplotlib.rcParams[name] for name in plots._STYLE} == before


def test_colours_can_be_told_apart_in_grey():
    """Would catch: a palette in which the line and the marks of a picture are one grey."""

    def grey(color):
        red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    shades = sorted(map(grey, (plots.BLUE, plots.VERMILLION, plots.BLACK)))
    assert min(np.diff(shades)) > 15
