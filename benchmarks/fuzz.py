"""Calls every command with arguments and files that nobody means, and checks that each ends in good order.

    python benchmarks/fuzz.py                        # 1,000 calls, and 300 mutated files
    python benchmarks/fuzz.py --calls 50 --files 0 --seed 3
    python benchmarks/fuzz.py --only 412 -v          # one call again, with what it wrote

Commands are called in this process, each in a new folder with the runs, the study and the data of tests/fixtures/v0_1.
Nothing starts Ray, and nothing trains more than two steps. A call fails by a traceback, an exit code other than 0, 1
and 2, a refusal of more than one line, or more than --limit seconds. The seed decides all calls.
"""

import argparse
import collections
import contextlib
import faulthandler
import functools
import importlib
import io
import json
import logging
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raytrain.errors import short

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures" / "v0_1"
LONG = "9" * 5000
# What no flag means: of a wrong type, out of all bounds, hard to print, or of another program.
NASTY = (
    "", " ", "none", "nan", "inf", "-inf", "-1", "0", "1.5", "1e400", LONG, "1" * 25, "1e3", "0x10", "1_000", "true",
    "a\nb", "[", "{}", "*", "?", "%s", "=", ",", ",,", "1,2", "a=b", "-", "~", "file:///nope", "nope://x", "http://[",
    "[red]x[/]", "[/]", "\u2028", "caf\u00e9", "\U0001f4a5", "caf\udce9", "../..", "a" * 300, "x" * 100_000, "'", '"',
)  # fmt: skip
# What no field of a file is.
WRONG = (
    None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**12, 10**30, "", "x", "../x", "\0", "\ud800", [], {}, [{}],
)  # fmt: skip
# Where no command should write, or may.
PLACES = (
    "", ".", "new", "deep/er", "file/x", "a" * 300, "data", "caf\udce9", "?", "[x]", "my runs", "/dev/null/x",
)  # fmt: skip


@dataclass(frozen=True)
class Tool:
    """A command: its share of the calls, and its module. A call has `operands` (one of each) and the arguments `fixed`;
    `flags` have values that are meant, as `--seed=1|2`, or none; `places` are flags that name what to write to."""

    share: int
    module: str
    operands: str = ""
    fixed: str = ""
    flags: str = ""
    places: str = ""

    @property
    def meant(self) -> dict[str, list[str]]:
        """The values that are meant of each flag; none for a switch."""
        parts = (part.partition("=") for part in self.flags.split())
        return {flag: values.split("|") if values else [] for flag, _, values in parts}


SMALL = "--n_layer 1 --n_head 2 --n_embd 16 --block_size 32 --global_batch 64 --eval_tokens 64"
SMALL += " --device cpu --compile False --data data"
RUN = """--preset=gpt2|llama|modern|openai_gpt2|custom --scale=tiny|small --normalization=rmsnorm|layernorm
--ffn_type=swiglu|standard|moe --position_encoding=rope|none --attention_window=full|[16,full]|16 --dropout=0.1
--qk_norm=True --optimizer=adamw|muon --schedule=wsd|cosine --seed=1|2 --learning_rate=1e-3 --micro_batch=1|auto|none
--rungs=none|1e8 --eval_data=a=data|a=nowhere --parallel=single|ddp|fsdp --precision=fp32|bf16|fp8
--activation_checkpointing=none|full --eval_interval=1 --peak_tflops=1 --init_from=run|data
--plugin=norms.yaml|plugin.py --data=data|run|norms.yaml --config=config.yaml|norms.yaml|run/config.json
--warmup_fraction=0.5 --beta2=0.99 --checkpoint_interval=1|none"""
SWEEP = """--space=norms.yaml|presets|full|one_factor|modern --base=gpt2|llama --max_trials=3|500 --seeds=2
--design=one_at_a_time|leave_one_out|random|d_optimal|full --reference=llama --trials=8|24 --interactions
--scheduler=halving|none --factor=2 --frontier_budgets=0.25,4 --independent_seeds --confirm=3 --tune_extend
--tune=learning_rate=1e-3,3e-3 --resume=study --json --tracking_uri=sqlite:///x.db --gpus_per_trial=0|1
--workers_per_trial=2 --trials_per_gpu=2 --concurrent=2 --flops=1e9 --tokens=1e5"""
REPLAY = """--design=full|d_optimal|random|one_at_a_time --trials=4 --seeds=2 --interactions --base=1
--scheduler=halving --factor=2 --replays=3 --seed=1 --json"""
TABLE = "--base=llama --scale=tiny --vocab_size=256 --unigram_loss=3.0 --command=x"
PREPARE = """--format=text|jsonl|parquet|arrow --split_by=names|text --column=text --tokenizer=bytes|bpe|data
--vocab_size=300 --val_fraction=0.5 --shard_tokens=10 --overwrite"""
HERE = "--runs ."
RANGES = """base: llama
axes:
  learning_rate: {low: 1e-4, high: 1e-2, count: 3}
  normalization: [rmsnorm, layernorm]
run: {warmup_fraction: 0.1}
seeds: 2
"""
TOOLS = {
    "train": Tool(
        250,
        "raytrain.train",
        fixed=f"{SMALL} --max_iters 1 --evaluations 1",
        flags=f"{RUN} --resume=run|interrupted",
        places="--runs --name",
    ),
    "tune": Tool(300, "raytrain.tune", "", f"--plan {SMALL}", f"{RUN} {SWEEP}", "--runs --name --storage"),
    "compare": Tool(
        120, "raytrain.compare", "study|run|study/trials|data run|interrupted", HERE, "--latest=2 --json", "--runs"
    ),
    "report": Tool(50, "raytrain.report.__main__", "study|table.csv|run", HERE, TABLE, "--out --runs"),
    "replay": Tool(80, "raytrain.replay", "study|table.csv|run", f"{HERE} --replays 2", REPLAY, "--export --runs"),
    "generate": Tool(
        70,
        "raytrain.generate",
        "run|interrupted|study|data",
        "--tokens 2",
        "--prompt=caf\u00e9|\x01 --temperature=0|1 --top_k=1 --seed=1 --tokens=3 --plugin=plugin.py",
    ),
    "export": Tool(
        40, "raytrain.export", "run|interrupted|study", "--to huggingface out", "--to=x --overwrite --plugin=plugin.py"
    ),
    "data": Tool(50, "raytrain.data.__main__", "info data|run|nothing"),
    "data prepare": Tool(
        60, "raytrain.data.__main__", "prepare texts|norms.yaml|run/log.jsonl", "--out new", PREPARE, "--out"
    ),
    "data fetch": Tool(
        20,
        "raytrain.data.__main__",
        "fetch",
        "--packages texts --out new",
        "--packages=norms.yaml --overwrite",
        "--out",
    ),
    "presets": Tool(20, "raytrain.presets", flags="--scale=tiny|350m --json --plugin=plugin.py"),
    "track": Tool(20, "raytrain.track", "sync|push run|data", HERE, "--tracking_uri=sqlite:///run|nope:x", "--runs"),
}


def generated(draw: random.Random, tool: Tool) -> list[str]:
    """The arguments of a call of `tool`, of which some are wrong."""
    meant, places = tool.meant, tool.places.split()

    def value(flag: str) -> str:
        if flag in places:
            return draw.choice(PLACES)
        return draw.choice(meant[flag]) if draw.random() < 0.6 else draw.choice(NASTY)

    argv = [draw.choice(one.split("|") if draw.random() < 0.9 else NASTY) for one in tool.operands.split()]
    argv += tool.fixed.split()
    for flag in draw.choices([*meant, *places, "--help"], k=draw.choice((0, 1, 1, 2, 3, 5))):
        if flag == "--help" or (flag in meant and not meant[flag]):
            argv += [flag] if flag != "--help" or draw.random() < 0.2 else []
        else:
            argv += [f"{flag}={value(flag)}"] if draw.random() < 0.3 else [flag, value(flag)]
    if draw.random() < 0.05:
        argv.insert(draw.randrange(len(argv) + 1), draw.choice(("--nope", "--nope=1", "-x", "--", "--seeds")))
    if draw.random() < 0.05 and (dropped := draw.choice([*argv, ""])) not in ("", "--plan"):
        argv.remove(dropped)
    return argv


def mutated(draw: random.Random, content: bytes) -> bytes:
    """`content` with one thing wrong in it: in its JSON or YAML, or in its bytes."""
    kind = draw.choice(("value", "value", "value", "bytes", "cut", "twice", "text"))
    if kind == "value" and (changed := _other_value(draw, content)) is not None:
        return changed
    at, length = draw.randrange(len(content) + 1), draw.randrange(1, 40)
    if kind == "bytes":
        return content[:at] + draw.randbytes(length) + content[at + length :]
    if kind == "cut":
        return content[:at] + (b"" if draw.random() < 0.5 else content[at + length :])
    if kind == "twice":
        return content[:at] + content[at : at + length] * draw.choice((2, 1000)) + content[at + length :]
    planted = (b"\0", b"\xef\xbb\xbf", b"\r\n", b"[" * 9999, b"{", LONG.encode(), b"NaN", b"&a [*a]", b"!!x ", b"\xff")
    return content[:at] + draw.choice(planted) + content[at:]


def _other_value(draw: random.Random, content: bytes) -> bytes | None:
    """JSON or YAML, as JSON, with a part replaced, gone, or under another name; None for other text."""
    lines = content.splitlines() if content.count(b"\n{") else [content]
    number = draw.randrange(len(lines))
    try:
        value = json.loads(lines[number]) if content[:1] == b"{" else yaml.safe_load(content)
    except (ValueError, yaml.YAMLError):
        return None
    places = list(_places(value))
    holder, key = draw.choice(places)
    if isinstance(holder, dict) and draw.random() < 0.25:
        moved = holder.pop(key)
        if draw.random() < 0.3:
            holder[draw.choice(("x", "", "val_loss", "event", str(key).upper()))] = moved
    else:
        holder[key] = draw.choice((*WRONG, draw.choice(places)[0], int("1" * 400)))
    try:
        lines[number] = json.dumps(value).encode()
    except ValueError:  # it holds itself
        return None
    return b"\n".join(lines) + (b"\n" if len(lines) > 1 else b"")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each part of `value` as what holds it and its place there."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(part, dict | list):
            yield from _places(part)


# Files that are mutated, as a glob; how often; and the calls of which one reads each.
STUDY = ("compare study", "report study", "replay study", "replay t.parquet --export study", "tune --resume study")
RUN_READERS = ("compare run", "generate run --tokens 1", "export run --to huggingface out", "train --resume run")
FILES: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("norms.yaml", 30, ("tune --plan --space norms.yaml",)),
    ("ranges.yaml", 20, ("tune --plan --space ranges.yaml", "tune --plan --space ranges.yaml --max_trials 5")),
    (
        "full.yaml",
        15,
        ("tune --plan --space full.yaml", "tune --plan --space full.yaml --design d_optimal --trials 80"),
    ),
    ("config.yaml", 30, ("tune --plan --config config.yaml", "train --config config.yaml")),
    ("study/study.json", 60, STUDY),
    ("study/events.jsonl", 20, ("tune --resume study",)),
    ("study/trials/*/*.json*", 45, (*STUDY, "compare study --json")),
    ("run/*.json*", 35, RUN_READERS),
    ("run/checkpoints/*/manifest.json", 15, RUN_READERS[1:]),
    ("interrupted/*.json*", 10, ("train --resume interrupted", "compare interrupted")),
    ("data/manifest.json", 20, ("data info data", "generate run --tokens 1")),
)


class Hang(BaseException):
    """A call took too long."""


def sandbox(folder: Path) -> None:
    """Fill `folder` with what calls are about."""
    shutil.copytree(FIXTURES, folder, dirs_exist_ok=True)
    for file in folder.rglob("*.json"):
        file.write_text(file.read_text().replace("/fixture/", f"{folder}/"))
    shutil.copy(ROOT / "search_spaces" / "full.yaml", folder)
    shutil.copy(ROOT / "examples" / "dyt_norm.py", folder / "plugin.py")
    (folder / "ranges.yaml").write_text(RANGES)
    (folder / "config.yaml").write_text("seed: 3\nlearning_rate: 1e-3\nflops: 1e9\nmicro_batch: none\n")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("one two three\n" * 200)
    (folder / "texts" / "b.jsonl").write_text('{"text": "four five"}\n' * 50)
    rows = "".join(
        f"{level},{seed},{2 + seed / 9 + len(level) / 99},1e9\n"
        for level in ("rmsnorm", "layernorm")
        for seed in (1, 2, 3)
    )
    (folder / "table.csv").write_text(f"normalization,seed,val_loss,train_flops\n{rows}")
    (folder / "file").touch()


def tame() -> None:
    """Have nothing start Ray, and no run take more than two steps."""
    import raytrain.engine.study as study
    import raytrain.train as single
    from raytrain.engine.journal import StudyJournal
    from raytrain.sweep.trial import trials_of

    def without_ray(session: Any, work: Callable[..., int]) -> int:
        record = study.read_study_json(session.folder)
        StudyJournal(session.folder, trials_of(record), record["scheduler"])
        return 0

    def two_steps(train: Callable[..., Any], config: Any, on_report: Any, folder: Any, interrupted: Any) -> Any:
        seen: list[int] = []
        result = train(
            config, lambda report: seen.append(1) or on_report(report), folder, lambda: len(seen) > 2 or interrupted()
        )
        return result | ({"status": "complete", "val_loss": 0.0} if result["status"] == "interrupted" else {})

    study._with_ray = without_ray
    single.train = functools.partial(two_steps, single.train)


@dataclass(frozen=True)
class Call:
    """A call of the command `name`, before which a file of those that `pattern` matches is mutated, if there is one."""

    name: str
    argv: list[str]
    group: str  # its row in the table
    pattern: str = ""
    seed: int = 0  # of the mutation
    allowed: tuple[int, ...] = (0, 1, 2)


def attempt(call: Call, folder: Path, encoding: str, limit: float) -> tuple[object, str]:
    """The exit code of a call in `folder`, or what went wrong in a word; and what it wrote, or the traceback."""
    written = io.BytesIO()
    out, err = (io.TextIOWrapper(written, encoding, write_through=True) for _ in range(2))
    before, code = Path.cwd(), 0
    os.chdir(folder)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = importlib.import_module(TOOLS[call.name].module).main(call.argv)
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        return type(error).__name__, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.chdir(before)
    text = written.getvalue().decode(encoding, "replace")
    if "Traceback (most recent call last)" in text:
        return "traceback", text
    is_line = text.splitlines()[-1:] and text.splitlines()[-1].startswith("error: ")
    return ("not one line" if code == 2 and not is_line else code), text


def calls(seed: int, generate: int, mutate: int) -> Iterator[Call]:
    """`generate` calls of all commands, one of each reader in FILES with all files whole, and `mutate` with one not."""
    draw = random.Random(seed)
    names = [name for name, tool in TOOLS.items() for _ in range(tool.share)]
    for number in range(generate):
        name = list(TOOLS)[number] if number < len(TOOLS) else draw.choice(names)
        yield Call(name, generated(draw, TOOLS[name]), name, seed=draw.randrange(2**32))
    for reader in dict.fromkeys(reader for _, _, readers in FILES for reader in readers):
        if mutate:
            yield Call(reader.split()[0], arguments(reader), "whole files", allowed=(0,))
    patterns = [(pattern, readers) for pattern, share, readers in FILES for _ in range(share)]
    for number in range(mutate):
        pattern, readers = patterns[number * len(patterns) // mutate]
        reader = draw.choice(readers)
        yield Call(reader.split()[0], arguments(reader), f"mutated {pattern}", pattern, draw.randrange(2**32))


def arguments(reader: str) -> list[str]:
    """Those of a call in FILES."""
    name, *argv = reader.split()
    if name in ("tune", "train") and "--resume" not in argv:
        argv += SMALL.split()
    return argv if name in ("generate", "export", "data", "train") else [*argv, "--runs", "."]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of a call; more on a machine that is busy")
    parser.add_argument("--only", type=int, nargs="*", help="the numbers of calls, and no others")
    parser.add_argument("-v", action="store_true", help="print what each call wrote")
    flags = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    top = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ |= {"RAYTRAIN_CACHE": str(top / "cache"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}

    def hang(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    tame()
    codes: dict[str, collections.Counter[object]] = collections.defaultdict(collections.Counter)
    failed, slowest = 0, (0.0, "")
    try:
        for number, call in enumerate(calls(flags.seed, flags.calls, flags.files)):
            if flags.only and number not in flags.only:
                continue
            folder, draw = top / "a" / "b" / str(number), random.Random(call.seed)
            sandbox(folder)
            if call.pattern:
                file = draw.choice(sorted(folder.glob(call.pattern)))
                file.write_bytes(mutated(draw, file.read_bytes()))
            faulthandler.dump_traceback_later(10 * flags.limit, exit=True)
            began = time.monotonic()
            code, text = attempt(call, folder, draw.choice(("utf-8", "utf-8", "ascii")), flags.limit)
            slowest = max(slowest, (time.monotonic() - began, f"{number}, {call.name}"))
            codes[call.group][code] += 1
            is_wrong = code not in call.allowed
            failed += is_wrong
            if is_wrong or flags.v:
                said = " ".join(short(part, 60) for part in call.argv)
                print(plain(f"{'FAILED' if is_wrong else 'call'} {number}: {call.name} {said}, {call.group}: {code}"))
                print(plain(text[-2000:]), flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(top, ignore_errors=True)
    print(f"{'':36}" + "".join(f"{code!s:>8}" for code in (0, 1, 2, "other")))
    for name, counts in codes.items():
        shown = [counts[0], counts[1], counts[2], sum(counts.values()) - counts[0] - counts[1] - counts[2]]
        print(f"{name:36}" + "".join(f"{count:>8}" for count in shown))
    total = sum(sum(counts.values()) for counts in codes.values())
    print(f"{total:,} calls, {failed} failed; the slowest took {slowest[0]:.1f} s: call {slowest[1]}")
    return int(bool(failed))


def plain(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


if __name__ == "__main__":
    raise SystemExit(main())
