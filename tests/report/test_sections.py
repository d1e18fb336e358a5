import base64
import dataclasses
import hashlib
import html.parser
import itertools
import json
import re

import pandas as pd
import pytest

from raytrain.analysis.answer import answer
from raytrain.errors import UserError
from raytrain.report.document import Folded, Section, Table, page, summary
from raytrain.report.sections import sections, write_report
from raytrain.rundir.log import JsonLog
from tests.studies import AXES, write_study

IDS = ["answer", "question", "effects", "ranking", "curves", "interactions", "frontier", "speed", "noise", "outcomes"]
IDS += ["cost", "reproduce", "method"]
VOID = {"meta", "link", "img"}
LABEL = '<script>|`x`![a](u)&" '
HOSTILE = '<script>alert(1)</script> | `x` ![a](http://evil.example/x.png) **b** & "q"'


class Page(html.parser.HTMLParser):
    """What a page holds: text by section, tags, the addresses that it would load, ids."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.loads, self.open, self.text, self.section = [], [], [], [], {}, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        self.loads += [given[name] for name in ("src", "href", "srcset", "data") if name in given]
        if tag == "section":
            self.section = given["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + " " + data.replace("\N{NO-BREAK SPACE}", " ")


def effect(point):
    together = point["position_encoding"] == "rope" and point["norm_position"] == "pre"
    return 0.05 * (point["norm_position"] == "post") + 0.3 * (point["position_encoding"] == "none") + 0.02 * together


def failures(index):
    if index == 5:
        return {"status": "diverged", "val_loss": None, "reason": f"loss is not finite {HOSTILE}"}
    if index == 9:
        return {"status": "oom", "val_loss": None, "reason": "CUDA out of memory"}
    return {}


def report(folder):
    files = write_report(folder)
    parsed = Page(files[0].read_text())
    assert not parsed.open
    return parsed, files[1].read_text()


def tables(answered, name):
    """Those of a section, folded ones too."""
    (part,) = [part for part in sections(answered) if part.id == name]
    blocks = [one for block in part.blocks for one in (block.blocks if isinstance(block, Folded) else [block])]
    return [block for block in blocks if isinstance(block, Table)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study with all that a study can have: effects, an interaction, a frontier, failures, a hostile label."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    budgets = (1e14, 2.5e14, 5e14, 2e15, 4e15)
    return write_study(folder, effect=effect, seeds=3, frontier_budgets=budgets, results=failures, label=LABEL)


@pytest.fixture(scope="module")
def whole_report(whole):
    return report(whole)


def test_the_page_parses_and_has_every_section(whole_report):
    """Would catch: a section lost, a tag left open, two elements of one id, a heading without anything under it."""
    found, text = whole_report
    assert [i for i in found.ids if i in IDS] == IDS
    assert len(set(found.ids)) == len(found.ids)
    for name in IDS:
        assert len(found.text[name].split()) > 10, name
    assert len(re.findall("^## ", text, flags=re.MULTILINE)) == len(IDS)
    assert [tag for tag, _ in found.tags].count("h1") == 1


def test_the_page_needs_no_network_and_runs_no_script_but_its_own(whole, whole_report):
    """Would catch: a picture by its file's name, a font or style from elsewhere, a script of a label, or a policy that
    lets one run."""
    found, _ = whole_report
    tags = [tag for tag, _ in found.tags]
    assert not {*tags} & {"iframe", "object", "embed"}
    assert tags.count("script") == 1
    (script,) = re.findall("<script>(.*?)</script>", (whole / "report" / "index.html").read_text(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert all(address.startswith(("data:", "#")) for address in found.loads), found.loads
    assert not any(name.startswith("on") for _, given in found.tags for name in given)
    policy = next(given["content"] for tag, given in found.tags if given.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_every_text_is_escaped(whole_report):
    """Would catch: a label or a reason that is HTML in the page, or a picture, a column or emphasis in the summary."""
    found, text = whole_report
    assert HOSTILE in found.text["outcomes"]
    assert LABEL in found.text["ranking"]
    assert "<script" not in text
    assert "![a](" not in text
    assert "**b**" not in text.replace(r"\*\*b\*\*", "")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for above, below in itertools.pairwise(lines):
        if set(above) <= set("|-:"):
            assert len(re.split(r"(?<!\\)\|", below)) == above.count("|") + 1
    assert any("alert(1)" in line for line in lines)


def test_every_image_says_what_it_shows(whole_report):
    """Would catch: a picture without words for who cannot see it, or one that shrinks to nothing on a phone."""
    found, _ = whole_report
    images = [given for tag, given in found.tags if tag == "img"]
    assert len(images) == 5
    for image in images:
        assert len(image["alt"]) > 40
        assert int(re.search(r"min-width: (\d+)px", image["style"]).group(1)) >= 300


def test_the_files(whole):
    """Would catch: a picture that is in the page alone, a file that is not told of, a table without its trials."""
    files = write_report(whole)
    names = {file.name for file in files}
    pictures = ("effects", "interactions", "frontier", "hardware_frontier", "speed")
    expected = {"index.html", "summary.md", "table.csv"}
    assert names == expected | {f"{name}.{ending}" for name in pictures for ending in ("svg", "png")}
    assert names == {file.name for file in (whole / "report").iterdir()}
    assert len(pd.read_csv(whole / "report" / "table.csv")) == len(
        json.loads((whole / "study.json").read_text())["trials"]
    )
    for linked in re.findall(r"(?<!\\)\]\((.+?)\)", (whole / "report" / "summary.md").read_text()):
        assert linked in names


def test_a_report_again_is_the_same(whole, tmp_path):
    """Would catch: times or random ids in the files, which would make every upload a change."""
    one, two = (write_report(whole, tmp_path / name) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_pictures_of_an_earlier_report_go(tmp_path):
    """Would catch: the picture of a frontier that the study does not have, left over in the folder."""
    folder = write_study(tmp_path / "s", seeds=2)
    (folder / "report").mkdir()
    (folder / "report" / "frontier.png").touch()
    (folder / "report" / "mine.txt").touch()
    write_report(folder)
    assert not (folder / "report" / "frontier.png").exists()
    assert (folder / "report" / "mine.txt").exists()


def test_the_ranking_has_a_row_a_function(whole):
    """Would catch: a row a trial, seeds that are averaged with a diverged one, a gain or a count in another's row."""
    found = answer(whole)
    table = tables(found, "ranking")[1]
    assert len(table.rows) == 12
    rows = {row[2].removeprefix(LABEL): dict(zip(table.columns, row, strict=True)) for row in table.rows}
    base = rows["gpt2 (baseline)"]
    runs = found.table[(found.table["label"] == LABEL + "gpt2") & (found.table["role"] != "frontier")]
    assert base["val_loss"].startswith(f"{runs['val_loss'].mean():.4f} \N{PLUS-MINUS SIGN}")
    assert sorted(base["each seed"].split(", ")) == sorted(f"{loss:.4f}" for loss in runs["val_loss"])
    low, high = re.search(r"\((.+) to (.+)\)", base["compute gain (95%)"]).groups()
    assert float(low) < 1 < float(high)
    assert base["MFU"] == f"{runs['mfu'].mean():.1%}"
    partly = rows["normalization=rmsnorm"]
    assert partly["outcome"] == "2 complete, 1 diverged"
    assert len(partly["each seed"].split(", ")) == 2
    assert {row[0] for row in table.rows} == {str(rank) for rank in found.table["rank"].dropna()}


def test_rows_whose_ranks_differ_are_marked_with_their_mfu(whole, whole_report):
    """Would catch: a faster variant that gains by hardware FLOPs without a mark, or a mark without the MFU."""
    found = answer(whole)
    table = tables(found, "ranking")[1]
    noted = set(found.table.loc[found.table["rank_note"] != "", "short_name"])
    marked = {table.rows[number][2].removesuffix(" (baseline)") for number in table.marked}
    assert marked == noted
    assert marked
    assert {number for number, row in enumerate(table.rows) if "\N{NOT EQUAL TO}" in row[1]} == table.marked
    for number in table.marked:
        assert table.rows[number][0] != table.rows[number][1].split()[0]
    assert re.search(r"rank \d+, by hardware FLOPs \d+: MFU [\d.]+%", whole_report[0].text["ranking"])


def test_a_large_study_is_folded_and_keeps_the_baseline(tmp_path):
    """Would catch: hundreds of rows in the reader's way, the baseline folded away, or rows lost or shown twice."""
    axes = AXES | {"activation": ("gelu", "silu", "relu"), "bias": (False, True), "dropout": (0.0, 0.1)}
    axes |= {"weight_tying": (True, False)}
    folder = write_study(tmp_path / "s", axes=axes, seeds=1, effect=lambda p: 0.03 * (p["norm_position"] == "post"))
    found = answer(folder)
    first, table = tables(found, "ranking")
    assert [len(first.rows), sum("(baseline)" in row[-1] for row in first.rows)] == [10, 1]
    assert first.rows[-1][-1] == table.rows[-1][2]
    assert len(table.rows) == 288
    assert len(table.shown) == 31
    assert sorted(table.shown + table.folded) == list(range(288))
    assert [row[2] for row in table.rows if "(baseline)" in row[2]] == [table.rows[table.shown[-1]][2]]
    (pairs,) = tables(found, "interactions")
    assert len(pairs.rows) == 34
    found = sections(found)
    text = page("s", found)
    parsed = Page(text)
    assert [tag for tag, _ in parsed.tags].count("details") == 4
    assert "257 more rows" in text
    assert "257 more rows are in index.html" in summary("s", found)


def test_without_replicates_nothing_is_claimed(tmp_path):
    """Would catch: effects called better or worse by the residuals alone, in a study whose noise is not known."""
    found, text = report(write_study(tmp_path / "s", seeds=1, effect=effect, noise_sd=0.0001))
    assert "No claim of better or worse" in found.text["answer"]
    assert "The noise floor is not known" in found.text["noise"]
    for name in ("effects", "interactions"):
        assert "no claim" in found.text[name]
        assert not re.search(r"\b(better|worse)\b", found.text[name])
    assert "not known" in text


def test_what_is_missing_says_why(tmp_path):
    """Would catch: an empty section, where a reader cannot tell a missing frontier or MFU from a lost one."""
    found, _ = report(write_study(tmp_path / "s", seeds=2, mfu=False, git_commit=None, command="", plan={}))
    assert "No rank by hardware FLOPs: the peak of the device is not known" in found.text["ranking"]
    assert (
        "No compute gain and no hardware gain: a frontier needs the baseline at three budgets" in found.text["ranking"]
    )
    assert "No frontier in model FLOPs" in found.text["frontier"]
    assert "No picture: all trials with a loss spent the same FLOPs" in found.text["frontier"]
    assert "No MFU" in found.text["speed"]
    assert "no estimate" in found.text["cost"]
    assert "git commit is not known" in found.text["reproduce"]
    assert "command is not known" in found.text["reproduce"]


def test_no_hardware_rank_over_different_devices_says_why(tmp_path):
    """Would catch: the peak of the device blamed, which is known, where trials had different devices; or a trade-off of
    loss and speed that takes a device's speed for the variant's, without a word."""
    found, _ = report(write_study(tmp_path / "s", results=lambda i: {"device": "NVIDIA B200"} if i == 3 else {}))
    reason = "trials had different devices (1 x NVIDIA B200, 1 x NVIDIA H200)"
    assert f"No rank by hardware FLOPs: {reason}." in found.text["ranking"]
    assert f"But {reason}, and a speed is theirs as much as the variant's." in found.text["speed"]


def test_an_a_a_study_finds_no_difference(tmp_path):
    """Would catch: a winner, an effect, or a crash, where all trials are one variant."""
    found, text = report(write_study(tmp_path / "s", axes={"bias": (False,)}, seeds=20))
    assert "No difference" in found.text["answer"]
    assert "No axis varies" in found.text["question"]
    assert "No effects: no axis varies" in found.text["effects"]
    assert "from seeds, 19 degrees of freedom" in found.text["noise"]
    assert "(20 seeds)" in found.text["ranking"]
    assert "No difference" in text


def test_equal_functions_show_no_difference(tmp_path):
    """Would catch: an effect of nothing called better or worse."""
    found, _ = report(write_study(tmp_path / "s", seeds=5))
    assert "No difference stands out" in found.text["answer"]
    assert not re.search(r"\b(better|worse)\b", found.text["effects"])


@pytest.mark.parametrize("status", ["failed", None])
def test_a_study_without_a_loss(tmp_path, status):
    """Would catch: a traceback where every trial failed, or none has begun; or a study that seems to be over."""
    lost = {"status": status, "val_loss": None, "train_flops": None, "reason": "no such device"}
    found, _ = report(write_study(tmp_path / "s", results=lambda _: lost, interrupted=status is None))
    assert "There is no ranking" in found.text["ranking"]
    if status:
        assert "no such device" in found.text["outcomes"]
        assert "24 trials spent before they failed is not known" in found.text["cost"]
    else:
        assert "was interrupted: 24 of 24 trials have not ended" in found.text["answer"]


def test_stopped_trials_are_shown_with_their_flops(tmp_path):
    """Would catch: a trial that its scheduler stopped, ranked with the others or not in the picture."""
    rungs = {"name": "halving", "factor": 4, "rungs": [2.5e14], "keep": [6], "rung_decay": 0.1}
    stopped = {"status": "stopped", "rung": 0, "train_flops": 25 * 10**13, "val_loss": 3.3}
    folder = write_study(tmp_path / "s", results=lambda i: stopped if i > 11 else {}, scheduler=rungs)
    found, _ = report(folder)
    assert "halving, which continues the best: 6 after 2.5e+14 FLOPs" in found.text["question"]
    assert "by its scheduler, at a rung" in found.text["outcomes"]
    assert (folder / "report" / "frontier.png").exists()
    rows = tables(answer(folder), "ranking")[1].rows
    assert [row[0] for row in rows if "stopped" in row[-1]] == ["\N{EN DASH}"] * 6


def test_planned_against_actual(tmp_path):
    """Would catch: hours of one trial for those of all, of the wrong unit, or without all the ranks."""
    folder = write_study(tmp_path / "s", results=lambda _: {"world_size": 2, "train_seconds": 90.0})
    rows = {row[0]: row[1:] for row in tables(answer(folder), "cost")[0].rows}
    assert rows["trials"] == ["24", "24 ended"]
    assert rows["model FLOPs"] == ["2.4e+16", "2.4e+16"]
    assert rows["GPU-hours of training"] == ["16", "1.2"]  # 8 lanes of 2 ranks for an hour; 24 x 2 x 90 s


def test_how_to_reproduce(whole_report):
    """Would catch: a report from which the study cannot be run again."""
    for text in (whole_report[0].text["reproduce"], whole_report[1]):
        assert "git checkout " + "c0ffee" * 6 in text
        assert "python -m raytrain.tune --space small --seeds 2" in text
        assert "f00dcafe" in text


def test_out_that_cannot_be_written(tmp_path):
    """Would catch: a traceback for a report that would go into a file."""
    folder = write_study(tmp_path / "s")
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match=r"out \(.*taken\) cannot be written: "):
        write_report(folder, tmp_path / "taken")


def test_an_interval_stays_on_one_line_and_other_words_do_not():
    """Bug: a ranking too wide for a page, or a long reason that cannot wrap."""
    rows = [["1.217 (0.878 to 2.146)"], ["failed (out of memory)"]]
    shown = page("title", [Section("s", "S", [Table(["gain"], rows)])])
    assert "1.217 (0.878\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}2.146)" in shown
    assert "failed (out of memory)" in shown


def test_the_grid_marks_where_a_variant_differs(whole):
    """Would catch: a mark at the baseline's own level, one that is missing, or in another axis's column."""
    found = answer(whole)
    shown, _ = tables(found, "ranking")
    assert shown.columns[2:5] == [
        "norm_position, post",
        "position_encoding, learned_absolute",
        "normalization, layernorm_nobias",
    ]
    rows = {row[-1].removeprefix(LABEL): row[2:5] for row in shown.rows}
    assert rows["gpt2 (baseline)"] == ["\N{MIDDLE DOT}"] * 3
    assert rows["normalization=rmsnorm"] == ["\N{MIDDLE DOT}", "\N{MIDDLE DOT}", "\N{BLACK CIRCLE} rmsnorm"]


def test_an_interval_that_excludes_zero_without_a_claim_is_explained(tmp_path):
    """Would catch: "not distinguishable" beside an interval above zero, which reads as a mistake of ours."""
    found = answer(write_study(tmp_path / "s", seeds=3))
    chance = found.effects.table.assign(low=0.001, high=0.003, estimate=0.002, p=0.03, p_holm=0.2)
    found = dataclasses.replace(found, effects=dataclasses.replace(found.effects, table=chance))
    (shown,) = tables(found, "effects")
    assert {row[-1] for row in shown.rows} == {
        f"not distinguishable from zero (adjusted for {len(chance)} effects; alone p = 0.03)"
    }


def test_one_interaction_is_a_sentence(tmp_path):
    """Would catch: a picture of a single cell."""
    axes = {"norm_position": ("post", "pre"), "normalization": ("layernorm_nobias", "rmsnorm")}
    found, _ = report(write_study(tmp_path / "s", axes=axes, seeds=3))
    assert "One pair of levels was run together: norm_position=pre changes by" in found.text["interactions"]
    assert not (tmp_path / "s" / "report" / "interactions.png").exists()


def test_learning_curves_are_of_the_best_the_baseline_and_the_worst(tmp_path):
    """Would catch: the curve of another variant, or a report that fails where logs have none."""
    axes = {"norm_position": ("post", "pre"), "normalization": ("layernorm_nobias", "rmsnorm")}
    folder = write_study(tmp_path / "s", axes=axes, effect=lambda p: -0.1 * (p["norm_position"] == "pre"))
    assert "No learning curves" in report(folder)[0].text["curves"]
    for trial in json.loads((folder / "study.json").read_text())["trials"]:
        log = JsonLog(folder / "trials" / trial["id"] / "log.jsonl")
        for part in (1, 2, 3):
            log.write({"event": "step", "step": part, "train_flops": part * 10**14, "loss": 4.0 - part})
    runs = answer(folder).learning
    parts = dict(name.split(": ") for name in runs["variant"].unique())
    assert [*parts] == ["best", "baseline", "worst"] or [*parts] == ["best", "baseline, worst"]
    assert "norm_position=pre" in parts["best"]
    assert len(runs) == 3 * 2 * len(parts)
    assert report(folder)[0].text["curves"].strip().startswith("Learning curves")
    assert (folder / "report" / "curves.png").exists()
