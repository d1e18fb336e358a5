"""The folders of runs and studies."""

import json
from pathlib import Path

from raytrain.rundir.folders import read_study_json


def test_counts_of_an_old_study(tmp_path: Path) -> None:
    """Would catch a study of an earlier version, whose variants are `functions`, that no command reads any more."""
    fields = [
        "name",
        "space",
        "base",
        "scale",
        "created",
        "command",
        "git_commit",
        "budget_flops",
        "versions",
        "trials",
    ]
    counts = {"points": 9, "programs": 6, "functions": 3, "trials": 4}
    (tmp_path / "study.json").write_text(json.dumps(dict.fromkeys(fields, 1) | {"counts": counts}))
    expected = {"points": 9, "programs": 6, "variants": 3, "trials": 4}
    assert list(read_study_json(tmp_path)["counts"].items()) == list(expected.items())
