from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raytrain.analysis.enough import late_sentences, shortfall, slope_per_doubling, training_of
from raytrain.analysis.plain import answer_table, read_table
from raytrain.report.__main__ import main
from raytrain.sweep.budget import Budget

REFERENCE = Path(__file__).parent / "reference"
COMMAND = "python -m raytrain.tune --space full --design d_optimal --trials 128 --scale small --flops 2.5e14"


def test_a_study_of_runs_too_short_says_so_and_what_would_do():
    """Bug: an effect of 0.3 nats called significant, in 107 steps, of which a tenth of the runs made nothing."""
    table = read_table(REFERENCE / "real_full_h100.csv")
    told = answer_table(table, scale="small", unigram_loss=3.33, command=COMMAND)
    assert told[0].startswith("This study cannot answer its question: runs had 0.32 tokens a parameter")
    assert "12 of 128" in told[0]
    assert "--flops 1.5e+16" in told[0]
    assert "--flops 2.5e14" not in told[0]
    assert "--tune learning_rate=0.00033,0.001,0.003" in told[0]
    assert told[1] == "What follows is true of runs this short alone."


def test_norm_position_at_own_best_learning_rates(capsys):
    """Bug: plateaus at high rates in the effect of post-norm, or an effect at one rate alone."""
    path = REFERENCE / "real_lr_h100.csv"
    assert main([str(path), "--unigram_loss", "3.33", "--scale", "small"]) == 0
    told = capsys.readouterr().out
    assert "norm_position=post with learning_rate>=0.003, 7 of 8" in told
    assert "norm_position=post at own best learning rates: " in told
    table = read_table(path)
    best = table.groupby(["norm_position", "normalization", "position_encoding"])["val_loss"].min()
    raw = (best["post"] - best["pre"]).mean()
    line = next(line for line in told.splitlines() if line.startswith("norm_position=post at own best"))
    estimate = float(line.split(" nats")[0].split()[-1])
    assert estimate == pytest.approx(raw, abs=0.05)


def test_tables_that_cannot_be_answered(tmp_path, capsys):
    """Bug: a traceback for a file that is no table, or one of a single variant."""
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert main([str(tmp_path / "x.csv")]) == 2
    assert "lacks the columns seed, val_loss, train_flops" in capsys.readouterr().err
    assert main([str(tmp_path / "none.csv")]) == 2
    (tmp_path / "one.csv").write_text("seed,val_loss,train_flops,bias\n1,3.0,1e15,True\n2,3.1,1e15,True\n")
    assert main([str(tmp_path / "one.csv")]) == 2
    assert "no axis varies" in capsys.readouterr().err
    assert main([str(REFERENCE / "real_lr_h100.csv"), "--scale", "smal"]) == 2
    assert "Did you mean small?" in capsys.readouterr().err


def test_enough_training_is_not_remarked():
    """Bug: a warning for every study, or a study called unanswerable whose runs trained well for their length."""
    table = pd.DataFrame({"status": ["complete"] * 10, "tokens": 2e8, "parameters": 1e7, "flops_per_token": 6e7})
    assert training_of(table) == Budget(2e8, 1e7, 6e7)
    assert training_of(table.drop(columns="tokens")) is None
    assert not shortfall(table, None, training_of(table)).sentences
    (short,) = shortfall(table, None, Budget(2e7, 1e7, 6e7), "python -m raytrain.tune --name a --seeds 3").sentences
    assert short.startswith("Short runs: 2 tokens a parameter, and 20 is compute-optimal")
    assert short.endswith("python -m raytrain.tune --seeds 3 --flops 1.2e+16")


def test_how_fast_a_loss_still_falls():
    """Bug: a slope per e-fold, of the whole curve, or of the wrong sign."""
    steps = np.arange(100, 2001, 100)
    losses = np.where(steps < 1000, 9.0, 3 - 0.25 * np.log2(steps / 1000))
    assert slope_per_doubling(steps, losses) == pytest.approx(0.25)
    assert slope_per_doubling(steps[:1], losses[:1]) is None


def test_late_crossings():
    """Bug: crossings of single seeds, of pairs counted twice, or a fall that is that of the early part."""
    rows = [
        (
            f"{name}{seed}",
            step,
            {"a": 3.0, "b": 3.12, "c": 4.0}[name] - {"a": 0.1, "b": 0.3, "c": 0.1}[name] * step / 100,
        )
        for name in "abc"
        for seed in (0, 1)
        for step in (50, 100)
    ]
    curves = pd.DataFrame(rows, columns=["trial", "step", "val_loss"])
    variants = pd.Series({f"{name}{seed}": name for name in "abc" for seed in (0, 1)})
    (told,) = late_sentences(curves, variants)
    assert "fell by 0.05 nats for a doubling" in told
    assert told.endswith("1 of 3 pairs of variants changed their order.")
    assert late_sentences(curves[curves["step"] == 100], variants) == []
