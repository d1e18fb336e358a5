"""`python -m raytrain.data`: prepare token shards from files, describe a data folder, fetch a corpus of packages."""

import argparse
import contextlib
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import rich.console
import rich.progress

from raytrain.data.corpora import FORMATS, SPLIT_BY, find_sources
from raytrain.data.dataset import locate, open_dataset
from raytrain.data.prepare import BPE_VOCAB_SIZE, SHARD_TOKENS, VAL_FRACTION, OnProgress, prepare
from raytrain.data.shards import MANIFEST, SPLITS, Manifest, read_manifest
from raytrain.errors import Parser, UserError, command

_SPLIT_BY_HELP = (
    "names (default): train and validation in the names of files or folders give the splits, and test is left out; "
    "text: names count for nothing. Where none is called train, a hash of each document's text decides"
)
_LINE_SECONDS = 10.0  # between plain progress lines


def _parser() -> Parser:
    parser = Parser("python -m raytrain.data", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("prepare", help="files to token shards").add_argument
    add("files", nargs="+", metavar="FILES", help="files, folders or globs; stdlib: Python's standard library")
    add("--out", required=True, help="the folder to make")
    add("--format", choices=FORMATS, help="default: by the ending of each file")
    add("--column", default="text", help="JSON key, or Parquet or Arrow column, of the text (default: text)")
    add("--tokenizer", default="bytes", help="bytes (default), bpe (learned here), or the path of a tokenizer.json")
    add("--vocab_size", type=int, help=f"of the BPE (default: {BPE_VOCAB_SIZE})")
    add("--val_fraction", type=float, default=VAL_FRACTION, help=f"of the documents (default: {VAL_FRACTION})")
    add("--split_by", choices=SPLIT_BY, default=SPLIT_BY[0], help=_SPLIT_BY_HELP)
    add("--shard_tokens", type=int, default=SHARD_TOKENS, help=f"tokens of a shard (default: {SHARD_TOKENS})")
    add("--overwrite", action="store_true", help="replace a prepared folder")
    add = commands.add_parser("fetch", help="a corpus of the source of Python packages").add_argument
    add("--packages", required=True, metavar="FILE", help="the lock file, such as examples/corpus.lock")
    add("--out", metavar="FOLDER", help="the folder to make, for prepare to read")
    add("--overwrite", action="store_true", help="replace such a folder")
    add("--lock", nargs="*", metavar="NAME", help="write FILE anew: the newest wheels of these packages, or of its own")
    info = commands.add_parser("info", help="what a data folder holds")
    info.add_argument("spec", metavar="SPEC", help="stdlib, or a folder")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Prepare data, or describe a data folder."""
    args = _parser().parse_args(argv)
    if args.command == "fetch":
        _fetch(args)
        return 0
    if args.command == "prepare":
        with _ended_in_order(), _progress() as on_progress:
            prepare(
                find_sources(args.files, args.format, args.split_by),
                Path(args.out),
                tokenizer=args.tokenizer,
                vocab_size=args.vocab_size,
                column=args.column,
                val_fraction=args.val_fraction,
                shard_tokens=args.shard_tokens,
                overwrite=args.overwrite,
                on_progress=on_progress,
            )
    _print_info(args.out if args.command == "prepare" else args.spec)
    return 0


def _fetch(args: argparse.Namespace) -> None:
    from raytrain.data.fetch import fetch, write_lock

    if (args.lock is None) == (args.out is None):
        raise UserError("--out (a corpus of the lock file) or --lock (write the lock file): give one of the two")
    with _ended_in_order():
        if args.out is None:
            print(f"{args.packages}: packages: {write_lock(Path(args.packages), args.lock):,}")
            return
        with _progress() as on_progress:
            facts = fetch(Path(args.packages), Path(args.out), args.overwrite, on_progress)
    print(f"{args.out}: packages: {len(facts['packages']):,}")
    for name, file in facts["files"].items():
        size = f"{file['documents']:>7,} documents, {file['bytes'] / 1e6:>6,.1f} MB"
        print(f"{name:<24} {size}, projects: {file['projects']}")
    left = (f"{reason} {n['documents']:,} ({n['bytes'] / 1e6:,.1f} MB)" for reason, n in facts["dropped"].items())
    print(f"left out: {', '.join(left) or 'nothing'}")


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP, too, remove what is half made."""

    def end(number: int, frame: types.FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    try:
        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    except ValueError:  # not in the main thread: signals go to others
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_info(spec: str) -> None:
    dataset, folder = open_dataset(spec), locate(spec)
    print(f"{dataset.name}: {folder}")
    print(f"fingerprint {dataset.fingerprint}")
    if not (folder / MANIFEST).exists():
        width = dataset.train.dtype.name
        print(f"nanoGPT's format, {width}, largest token {dataset.largest_token:,}: vocabulary and text unknown")
        print(f"train  {len(dataset.train):,} tokens")
        print(f"val    {len(dataset.val):,} tokens")
        return
    manifest: Manifest = read_manifest(folder)
    print(f"tokenizer {manifest.tokenizer}, vocabulary {manifest.vocab_size:,}, {manifest.dtype}")
    for name in SPLITS:
        split = getattr(manifest, name)
        print(
            f"{name:<6} {split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes of text "
            f"({split.bytes / split.tokens:.3f} bytes/token), shards: {len(split.shards)}"
        )


@contextlib.contextmanager
def _progress() -> Iterator[OnProgress]:
    """On a terminal a bar, else a line now and then; both on stderr."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    tasks: dict[str, rich.progress.TaskID] = {}
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:

        def on_progress(task: str, done: float, total: int) -> None:
            if task not in tasks:
                tasks[task] = bar.add_task(task, total=total)
            bar.update(tasks[task], completed=done)

        yield on_progress


def _lines() -> OnProgress:
    began = last = time.monotonic()

    def on_progress(task: str, done: float, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_SECONDS:
            last = now
            print(f"{task}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB after {now - began:.0f} s", file=sys.stderr)

    return on_progress


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
