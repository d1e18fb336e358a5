"""Replays what hosts and batch systems do to a run or a study, each in seconds, and checks how it takes it.

    python benchmarks/faults.py                 # all cases
    python benchmarks/faults.py signals ray     # those whose name has one of these words

Signals: SIGTERM to the process group (timeout, a shell), to every process (SLURM, systemd) and to the driver alone
(`ray job stop`), SIGHUP and Ctrl-C, at moments from the first imports to the middle of training. Environment: variables
that a launcher left behind, a long folder for temporary files, caches and sessions that others could write to, a full
disk, data that is gone. A case fails by a traceback, another exit code than the documented one, more than 20 s to end,
a process that is left, a run that MLflow calls running, or a study that does not go on where it was.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlflow import MlflowClient

SMALL = "--device cpu --n_layer 1 --n_head 2 --n_embd 32 --block_size 32 --global_batch 64 --eval_tokens 64"
LIMIT = 20.0  # seconds from a signal to the end of the process
SIZE = 48 * 2**20  # bytes of the disk that gets full

Case = Callable[[Path], list[str]]  # in a folder of its own; what went wrong


def command(tool: str, folder: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"raytrain.{tool}", *flags, "--runs", str(folder)]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **changes}


def in_session(leader: int) -> list[int]:
    """The processes of the session that `leader` made: itself and all that it started, whoever is their parent now."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(path.name))
    return found


def has(leader: int, name: str) -> bool:
    """Whether a process whose command line starts with or names `name` runs in the session of `leader`."""
    for pid in in_session(leader):
        with contextlib.suppress(OSError):
            words = (Path("/proc") / str(pid) / "cmdline").read_text().split("\0")
            if words and (words[0].startswith(name) or words[0].endswith(f"/{name}")):
                return True
    return False


def traces(text: str) -> list[str]:
    return ["a traceback"] if "Traceback (most recent call last)" in text else []


class Study:
    """A sweep in a session of its own, to be hit at a moment."""

    def __init__(self, folder: Path, *flags: str, name: str = "s", **env: str) -> None:
        self.folder, self.name = folder, name
        self.log = folder / f"{name}.log"
        has_begun = (folder / name / "study.json").exists()
        plan = (
            ["--resume", name]
            if has_begun
            else ["--name", name, "--experiment", name, "--space", "presets", *SMALL.split(), *flags]
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command("tune", folder, *plan), stdout=log, stderr=log, start_new_session=True, env=environment(**env)
            )

    def wait_for(self, moment: str) -> None:
        """Until `moment`: seconds, the name of a process that has to be there, or `training`."""
        began = time.monotonic()
        while self.process.poll() is None:
            passed = time.monotonic() - began
            if moment.replace(".", "").isdigit():
                is_there = passed >= float(moment)
            elif moment == "training":
                is_there = any(
                    '"step"' in path.read_text() for path in self.folder.glob(f"{self.name}/trials/*/log.jsonl")
                )
            else:
                is_there = has(self.process.pid, moment)
            if is_there:
                return
            time.sleep(0.05)

    def hit(self, number: int, whom: str) -> None:
        """Send signal `number` to the `driver`, its process `group`, or `all` processes of the study at once."""
        pid = self.process.pid
        if whom == "group":
            os.killpg(pid, number)
        for target in {"driver": [pid], "all": in_session(pid)}.get(whom, []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, number)

    def judge(self, allowed: tuple[int, ...]) -> list[str]:
        """Wait for the end; what is not as it should be then."""
        began = time.monotonic()
        try:
            code = self.process.wait(3 * LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        took = time.monotonic() - began
        time.sleep(1.5)  # in which what was sent a SIGKILL may go
        left = [pid for pid in in_session(self.process.pid) if pid != self.process.pid]
        for pid in in_session(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        text = self.log.read_text()
        wrong = traces(text)
        wrong += [f"exit code {code}"] if code not in allowed else []
        wrong += [f"{took:.0f} s to end"] if took > LIMIT else []
        wrong += [f"{len(left)} processes left"] if left else []
        study = self.folder / self.name / "study.json"
        if study.exists() and code != 0:
            wrong += [] if json.loads(study.read_text()).get("interrupted") else ["not marked"]
            wrong += [] if f"--resume {self.name}" in text else ["no resume line"]
            wrong += self.running_in_mlflow()
        return [f"{problem} (after {took:.1f} s)" for problem in wrong]

    def running_in_mlflow(self) -> list[str]:
        database = self.folder / "mlflow.db"
        if not database.exists():
            return []
        client = MlflowClient(f"sqlite:///{database}")
        experiment = client.get_experiment_by_name(self.name)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        running = sum(run.info.status == "RUNNING" for run in runs)
        return [f"{running} runs RUNNING in MLflow"] if running else []


def interrupted(number: int, whom: str, moment: str) -> Case:
    """A study that gets a signal at a moment, and is then resumed to its end."""

    def case(folder: Path) -> list[str]:
        study = Study(folder, "--max_iters", "3000", "--checkpoint_interval", "200")
        study.wait_for(moment)
        study.hit(number, whom)
        code = 128 + number
        wrong = study.judge((code, -number) if not (folder / "s" / "study.json").exists() else (code,))
        partial = [path.name for path in folder.glob(".*") if path.name.startswith((".mlflow", ".s."))]
        return wrong + [f"left: {name}" for name in partial]

    return case


def declined(tool: str, words: str, *flags: str, code: int = 2, **env: str) -> Case:
    """A command that says in one line what is wrong with its environment, and starts nothing."""

    def case(folder: Path) -> list[str]:
        places = {name: value.replace("{folder}", str(folder)) for name, value in env.items()}
        (folder / "open").mkdir()
        (folder / "open").chmod(0o777)
        done = subprocess.run(
            command(tool, folder / "runs", *flags, *SMALL.split(), "--max_iters", "2"),
            capture_output=True, text=True, env=environment(**places), timeout=120,
        )  # fmt: skip
        wrong = traces(done.stderr)
        wrong += [] if done.returncode == code else [f"exit code {done.returncode}"]
        wrong += [] if words in done.stderr and done.stderr.count("\n") == 1 else [f"it says {done.stderr[-200:]!r}"]
        return wrong + (["a folder left"] if list(folder.glob("runs/*")) else [])

    return case


def full_disk(folder: Path) -> list[str]:
    """A run on a disk that is full. Needs root, to mount one."""
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        return ["no disk could be mounted"]
    try:
        with contextlib.suppress(OSError):
            (disk / "fill").write_bytes(bytes(2**20))
        flags = [*SMALL.split(), "--max_iters", "2", "--name", "r"]
        done = subprocess.run(command("train", disk, *flags), capture_output=True, text=True, env=environment())
        (disk / "fill").unlink()
        wrong = traces(done.stderr) + ([] if "No space left" in done.stderr else [f"it says {done.stderr[-200:]!r}"])
        wrong += [] if done.returncode in (1, 2) else [f"exit code {done.returncode}"]
        return wrong + (["the name is taken"] if (disk / "r").exists() else [])
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def swept(**env: str) -> Case:
    """A sweep that takes no notice of what is wrong in its environment."""

    def case(folder: Path) -> list[str]:
        places = {name: value.replace("{folder}", str(folder)) for name, value in env.items()}
        for place in places.values():
            if place.startswith(str(folder)):
                Path(place).mkdir(parents=True)
        study = Study(folder, "--max_iters", "20", **places)
        study.process.wait(300)
        return study.judge((0, 1))

    return case


def cases() -> Iterator[tuple[str, Case]]:
    """Every case by name."""
    term = signal.SIGTERM
    for whom in ("group", "all", "driver"):
        for moment in ("1", "gcs_server", "raylet", "ray::", "training"):
            yield f"signals: SIGTERM to {whom} at {moment}", interrupted(term, whom, moment)
    launcher = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    launcher |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    yield "environment: RANK=1 in a run", declined("train", "RANK (1) is set", RANK="1")
    yield "environment: WORLD_SIZE= in a run", declined("train", "WORLD_SIZE ('')", WORLD_SIZE="")
    agent = launcher | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    yield "environment: a torchrun that is gone, in a run", declined("train", "does not meet the others", **agent)
    yield (
        "environment: a cache that others write to",
        declined("train", "others can write", RAYTRAIN_CACHE="{folder}/open"),
    )
    compiled = {"TORCHINDUCTOR_CACHE_DIR": "{folder}/open"}
    yield (
        "environment: a compile cache likewise",
        declined("train", "others can write", "--compile", "True", **compiled),
    )
    yield "environment: a full disk", full_disk
    yield "sweeps: with a launcher's variables", swept(**launcher)
    yield "sweeps: with a TMPDIR of 95 characters", swept(TMPDIR="{folder}/" + "t" * 75)
    yield "signals: SIGHUP to group at training", interrupted(signal.SIGHUP, "group", "training")
    yield "signals: SIGINT to driver at training", interrupted(signal.SIGINT, "driver", "training")
    yield "signals: SIGINT to group at raylet", interrupted(signal.SIGINT, "group", "raylet")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run the cases whose names have one of these")
    parser.add_argument("--list", action="store_true", help="name the cases, and run none")
    flags = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    failed = 0
    for name, case in cases():
        if flags.words and not any(word in name for word in flags.words):
            continue
        if flags.list:
            print(name)
            continue
        folder, began = Path(tempfile.mkdtemp(prefix="faults-")), time.monotonic()
        try:
            wrong = case(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        failed += bool(wrong)
        took = time.monotonic() - began
        print(
            f"{'FAILED' if wrong else 'ok':8}{took:5.0f} s  {': '.join(filter(None, (name, '; '.join(wrong))))}",
            flush=True,
        )
    print(f"{failed} failed")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
