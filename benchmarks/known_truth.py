"""Two studies on CPUs whose true answers are known, run by the engine: does the report say what is so?

    python benchmarks/known_truth.py

- Known truth: in the corpus each letter is, nine times in ten, the one four places before, so a model must know the
  order of its tokens. `position_encoding: none` has to hurt; `dropout: 1e-12`, which is another variant but drops no
  number in all of the study, cannot do anything.
- A/A: 20 configurations that differ in `grad_clip` alone, at 1,000 and above, where no gradient comes to.

Every trial has a seed of its own: with the same seeds, equal configurations would have equal losses to the last bit,
and there would be nothing to tell noise from. Exits with 1 if a report says otherwise.
"""

import argparse
import dataclasses
import json
import random
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raytrain.analysis.answer import answer
from raytrain.analysis.ranking import programs
from raytrain.config.run import TrainConfig
from raytrain.data.__main__ import main as data
from raytrain.engine.study import run_study
from raytrain.report.sections import write_report
from raytrain.rundir.log import read_log
from raytrain.sweep.plan import Plan, make_plan
from raytrain.sweep.space import expand, load_space

LETTERS, LAG, COPIED = "abcdefgh", 4, 0.9
DOCUMENTS, LENGTH = 2000, 512
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "device": "cpu", "grad_clip": 1000.0}
SMALL |= {"global_batch": 1024, "warmup_fraction": 0.1, "eval_tokens": 16384, "checkpoint_interval": None}
KNOWN = """
base: llama
axes:
  position_encoding: [rope, none]
  dropout: [0.0, 1.0e-12]
"""
EQUAL = f"""
base: llama
axes:
  grad_clip: {[1000.0 + number for number in range(20)]}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="runs", help="where studies are kept [runs]")
    runs = Path(parser.parse_args().runs)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = write_corpus(Path(scratch))
        for name, space, steps, seeds in (("known_truth", KNOWN, 200, 6), ("a_a", EQUAL, 100, 3)):
            (Path(scratch) / f"{name}.yaml").write_text(space, encoding="utf-8")
            plan = plan_study(Path(scratch) / f"{name}.yaml", corpus, steps, seeds)
            run_study(plan, runs=runs, name=name, command=shlex.join(["python", *sys.argv]))
    wrong = [*known_truth(runs / "known_truth"), *equals(runs / "a_a")]
    print("\n".join(wrong) if wrong else "\nBoth reports say what is so.")
    return 1 if wrong else 0


def write_corpus(folder: Path) -> Path:
    """The prepared folder of the corpus. Its entropy, which no loss can be below, is 0.467 nats a letter."""
    draws = random.Random(0)
    with (folder / "lag.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(DOCUMENTS):
            text = draws.choices(LETTERS, k=LAG)
            while len(text) < LENGTH:
                text.append(text[-LAG] if draws.random() < COPIED else draws.choice(LETTERS))
            file.write(json.dumps({"text": "".join(text)}) + "\n")
    data(["prepare", str(folder / "lag.jsonl"), "--out", str(folder / "lag")])
    return folder / "lag"


def plan_study(space_file: Path, corpus: Path, steps: int, seeds: int) -> Plan:
    """All points of the space with `seeds` trials each, no two of which have the same seed."""
    space = load_space(str(space_file))

    def resolve(values: Mapping[str, Any]) -> TrainConfig:
        given = SMALL | {"data": str(corpus), "max_iters": steps}
        config, _ = resolve([("benchmark", given), ("space", values)], data_vocab_size=257)
        return config.replace(max_iters=None, flops=float(config.train_flops))

    base = resolve({"preset": space.base})
    plan = make_plan(space, expand(space, resolve), budget_flops=base.train_flops, scale="tiny", seeds=seeds, base=base)
    trials = [
        dataclasses.replace(trial, id=f"{trial.id.rpartition('-s')[0]}-s{seed}", config=trial.config.replace(seed=seed))
        for seed, trial in enumerate(plan.trials)
    ]
    return dataclasses.replace(plan, trials=tuple(trials))


def known_truth(folder: Path) -> Iterable[str]:
    """What the report of the first study says wrong."""
    text = tell(folder)
    if not re.search(r"position_encoding=\w+ pays: .* against none\b", text):
        yield "WRONG: that position_encoding=none hurts was not found"
    if found := re.search(r"dropout=\S+ (pays|costs|saves)", text):
        yield f"WRONG: the report says that {found[0]} something"


def equals(folder: Path) -> Iterable[str]:
    """What the report of the second study says wrong."""
    text, table = tell(folder), answer(folder).table
    largest = max(report.get("grad_norm", 0.0) for log in folder.glob("trials/*/log.jsonl") for report in read_log(log))
    print(f"{programs(table).nunique()} configurations, {len(table)} trials; largest gradient norm seen {largest:.3g}")
    if "no difference between any two of 20 variants" not in text or "No difference stands out; effects" not in text:
        yield "WRONG: the report of equal configurations does not say that there is no difference"


def tell(folder: Path) -> str:
    """Write the report, print what its answer says, and return that."""
    index, summary, *_ = write_report(folder)
    text = summary.read_text(encoding="utf-8")
    said = text.partition("## The answer")[2].partition("\n## ")[0].strip()
    print(f"\n{folder.name}: {index}\n{said}")
    return said.replace("\\", "")


if __name__ == "__main__":
    raise SystemExit(main())
