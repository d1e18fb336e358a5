import json

import numpy as np

from raytrain.data import open_dataset
from raytrain.data.__main__ import main


def test_prepare_then_info(tmp_path, capsys):
    """Catches flags that are not passed on, in either spelling, and a summary that differs from the data."""
    rows = [json.dumps({"body": f"text number {i}"}) for i in range(100)]
    (tmp_path / "a.data").write_text("\n".join(rows))
    out = str(tmp_path / "out")
    flags = ["--format=jsonl", "--column", "body", "--val_fraction=0.2", "--shard_tokens", "500"]
    assert main(["prepare", str(tmp_path / "a.data"), "--out", out, *flags]) == 0
    printed = capsys.readouterr().out
    assert "train  80 documents" in printed
    assert "val    20 documents" in printed
    assert main(["info", out]) == 0
    assert capsys.readouterr().out == printed
    dataset = open_dataset(out)
    assert dataset.fingerprint in printed
    assert f"{len(dataset.train):,} tokens" in printed
    assert main(["prepare", str(tmp_path / "a.data"), f"--out={out}", *flags]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "a.data"), f"--out={out}", *flags, "--overwrite"]) == 0


def test_info_of_nanogpt_says_what_is_unknown(tmp_path, capsys):
    """Catches a summary that invents a vocabulary."""
    for split in ("train", "val"):
        np.arange(1000, dtype="<u2").tofile(tmp_path / f"{split}.bin")
    assert main(["info", str(tmp_path)]) == 0
    assert "uint16, largest token 999: vocabulary and text unknown" in capsys.readouterr().out


def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys):
    """Catches argparse's usage text or a traceback in place of one line."""
    for argv in (
        [],
        ["info", str(tmp_path)],
        ["info", "stdlb"],
        ["prepare", str(tmp_path / "none"), "--out", str(tmp_path / "out")],
        ["prepare", "stdlib"],
        ["prepare", "stdlib", "--out", str(tmp_path / "out"), "--format", "csv"],
        ["prepare", "stdlib", "--out", str(tmp_path / "out"), "--vocab", "300"],
        ["prepare", "stdlib", "--out", str(tmp_path / "out"), "--shard_tokens", "many"],
    ):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
