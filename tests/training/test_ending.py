"""A signal ends a run soon, also within a long step. Runs in processes of their own, each in a step that C blocks."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytrain import train
from raytrain.rundir.run import RunFolder
from raytrain.training.loop import train as train_loop
from raytrain.training.step import Stepper

SMALL = "--n_layer 1 --n_head 2 --n_embd 32 --block_size 32 --global_batch 256 --eval_tokens 256 --log_interval 1"

# A run whose step number STEP, counted from 0, calls `wait`, which prints a line.
PREAMBLE = """
import contextlib, ctypes, os, sys
from raytrain import train
from raytrain.training import ending
from raytrain.training.step import Stepper

ending._STEP_SECONDS = float(os.environ["PATIENCE"])
ending._START_SECONDS = 0.2
passes = Stepper.gradients

def lock_up():
    mutex = ctypes.create_string_buffer(64)  # zeros are an unlocked mutex; no signal wakes who waits for it
    lock = ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # of a signal that comes before the wait
            print("within a step", flush=True)
            lock(mutex)

def await_release():
    print("within a step", flush=True)
    sys.stdin.readline()

def gradients(self, micro_batches, sequences, step):
    out = passes(self, micro_batches, sequences, step)
    if step == int(os.environ["STEP"]):
        wait()
    return out

Stepper.gradients = gradients
"""
BLOCKED = PREAMBLE + "wait = lock_up\nraise SystemExit(train.main())"
RELEASED = PREAMBLE + "wait = await_release\nraise SystemExit(train.main())"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """`start(script, *flags, step=2, patience=60)`: a run in `tmp_path`/a, once its step has begun."""
    processes: list[subprocess.Popen[str]] = []

    def run(script: str, *flags: str, step: int = 2, patience: float = 60) -> subprocess.Popen[str]:
        env = os.environ | {"STEP": str(step), "PATIENCE": str(patience), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", script, *SMALL.split(), "--runs", str(tmp_path), "--name", "a", *flags]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)
        processes.append(process)
        assert any(line == "within a step\n" for line in process.stdout), process.stderr.read()
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def resume(folder: Path) -> int:
    return train.main(["--resume", str(folder)])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_step_that_does_not_end_is_ended_with_the_process(start, tmp_path, number, code):
    """Catches a Ctrl-C that a step of minutes does not hear; an end that hides what is saved, or damages it."""
    process = start(BLOCKED, "--max_iters", "4", "--checkpoint_interval", "1", patience=0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "stopping after the step under way, or in 0.2 s; Ctrl-C again to stop at once\n" in err
    saved = re.search(r"ended at once: saved is (step-\d+); resume with: (.*)\n", out)
    names = sorted(path.name for path in (tmp_path / "a" / "checkpoints").glob("step-*"))
    assert saved[1] == names[-1]
    assert saved[2] == f"python -m raytrain.train --resume {tmp_path / 'a'}"
    assert resume(tmp_path / "a") == 0
    assert RunFolder(tmp_path / "a").result["steps"] == 4


def test_a_run_without_checkpoints_says_that_none_is_saved(start, tmp_path):
    """Catches a word of a checkpoint that is not there, and a first step that is waited for, though nothing is new."""
    process = start(BLOCKED, "--max_iters", "2", step=0)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "ended at once: no checkpoint is saved, so the run starts anew (--checkpoint_interval N " in out
    assert resume(tmp_path / "a") == 0


def test_a_second_ctrl_c_ends_at_once(start):
    """Catches a run that cannot be left while its patience lasts."""
    process = start(BLOCKED, "--max_iters", "4", patience=1e9)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("stopping after the step under way")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_step_that_ends_in_time_is_finished_and_saved(start, tmp_path, number, code):
    """Catches a step that is lost, or further ones that are waited for, where the one under way ends soon."""
    process = start(RELEASED, "--max_iters", "9")
    process.send_signal(number)
    assert process.stderr.readline().startswith("stopping after the step under way, or in 60 s;")
    out, _ = process.communicate("\n", timeout=60)
    assert process.returncode == code
    assert f"interrupted at step 3; resume with: python -m raytrain.train --resume {tmp_path / 'a'}\n" in out
    assert [path.name for path in (tmp_path / "a" / "checkpoints").glob("step-*")] == ["step-00000003"]
    assert RunFolder(tmp_path / "a").result["status"] == "interrupted"


def test_a_first_step_is_interrupted_where_python_hears_of_it(start, tmp_path):
    """Catches a SIGTERM before there is anything to save that ends in a traceback, or in the code of Ctrl-C."""
    process = start(RELEASED, "--max_iters", "2", step=0)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (143, 1)
    assert err.startswith("interrupted: no checkpoint is saved")


def test_ranks_end_in_order(tmp_path):
    """Catches a rank of torchrun that is ended while others save, and one that goes on alone."""
    flags = [*SMALL.split(), "--runs", str(tmp_path), "--name", "a", "--max_iters", "1000000", "--parallel", "fsdp"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.Popen(
        [*torchrun, "-m", "raytrain.train", *flags, "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        assert any(re.match(r"step +2 ", line) for line in process.stdout)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    step = int(re.search(r"interrupted at step (\d+);", out)[1])
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    assert err.count("stopping after the step under way") == 1


def test_the_step_under_way_is_the_last(tiny_run, tmp_path, monkeypatch):
    """Catches a signal within a step that is seen only after the next, which may take minutes."""
    came = []
    passes = Stepper.gradients

    def gradients(self, micro_batches, sequences, step):
        out = passes(self, micro_batches, sequences, step)
        came.extend([True] * (step == 4))
        return out

    monkeypatch.setattr(Stepper, "gradients", gradients)
    result = train_loop(tiny_run(log_interval=100), folder=tmp_path, interrupted=lambda: bool(came))
    assert (result["status"], result["steps"]) == ("interrupted", 5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_script_is_interrupted_and_lives(tiny_run, tmp_path, monkeypatch, count):
    """Catches a process of the user's own that a run ends; a Ctrl-C that leaves its run unsaved, and a second one that
    is not heeded before the step has ended."""
    monkeypatch.setattr("raytrain.training.ending._STEP_SECONDS", 0.0)
    passes = Stepper.gradients
    reached = []

    def gradients(self, micro_batches, sequences, step):
        if step == 2:
            for _ in range(count):
                signal.raise_signal(signal.SIGINT)
        reached.append(step)
        return passes(self, micro_batches, sequences, step)

    monkeypatch.setattr(Stepper, "gradients", gradients)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train.run(tiny_run(max_iters=1000), runs=tmp_path, name="a")
    assert signal.getsignal(signal.SIGINT) is before
    names = [path.name for path in tmp_path.glob("a/checkpoints/step-*")]
    assert names == ([f"step-{reached[-1] + 1:08d}"] if count == 1 else [])
    assert (reached[-1] == 1) == (count == 2)
