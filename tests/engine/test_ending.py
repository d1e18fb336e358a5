"""A signal ends a study's process soon, whatever its main thread does. Without Ray: scripts in their own processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PREAMBLE = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from raytrain.engine import ending as module
from raytrain.engine.ending import adopting_orphans, descendants, listening
module._START_SECONDS, module._DEAD_SECONDS = 0.3, 0.1
"""


def run(script: str, *signals: int, **env: str) -> tuple[int, str]:
    """The exit code and output of a script that gets `signals`, each after a line that it has printed."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PREAMBLE + script], stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
    )
    assert process.stdout is not None
    said = ""
    for number in signals:
        said += process.stdout.readline()
        process.send_signal(number)
    said += process.stdout.read()
    return process.wait(), said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_the_main_thread_is_interrupted_and_the_code_is_that_of_the_signal(number: int, code: int) -> None:
    """Would catch a SIGTERM that ends a study unmarked, and one that is told apart from no other signal."""
    script = r"""
with listening() as ending:
    ending.on_first = lambda: os.write(1, b"marked\n")
    try:
        print("ready")
        time.sleep(60)
    except KeyboardInterrupt:
        os.write(1, b"in good order\n")
    while not ending.has_come: time.sleep(0.01)
sys.exit(ending.code)
"""
    found, said = run(script, number)
    assert found == code
    assert sorted(said.split("\n")[:3]) == sorted(["ready", "marked", "in good order"])


def test_a_main_thread_that_hears_nothing_is_ended_with_all_below_it(tmp_path: Path) -> None:
    """Would catch a driver that hangs in a call of Ray's after its Ray was killed, and processes that it leaves, also
    those whose parents died before."""
    script = """
with listening() as ending, adopting_orphans():
    ending.private = Path(os.environ["PRIVATE"])
    ending.on_force = lambda: print("forced")
    # A parent that dies, whose child goes on.
    parent = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    subprocess.run([sys.executable, "-c", parent])
    said = ["ready", *descendants(os.getpid())]
    while True:
        try:
            print(*said)
            while True: time.sleep(1)
        except KeyboardInterrupt:
            said = ["interrupted"]
"""
    private = tmp_path / "private"
    private.mkdir()
    code, said = run(script, signal.SIGTERM, PRIVATE=str(private))
    assert code == 143
    ready, interrupted, forced, *_ = said.split("\n")
    assert (interrupted, forced) == ("interrupted", "forced")
    (orphan,) = map(int, ready.split()[1:])
    assert not Path(f"/proc/{orphan}").exists() or "Z" in Path(f"/proc/{orphan}/stat").read_text().split(")")[1]
    assert not private.exists()


def test_a_dead_ray_is_not_waited_for_and_a_second_ctrl_c_is_heeded() -> None:
    """Would catch a study that waits its whole patience for a Ray that is gone; and one that cannot be left."""
    stubborn = """
with listening() as ending:
    ending.ray_is_up(lambda: {dead})
    ending.patience = 1e9
    ending.on_force = lambda: print("forced")
    said = "ready"
    while True:
        try:
            print(said)
            while True: time.sleep(1)
        except KeyboardInterrupt:
            said = "once"
"""
    assert run(stubborn.replace("{dead}", "True"), signal.SIGTERM) == (143, "ready\nonce\nforced\n")
    assert run(stubborn.replace("{dead}", "False"), signal.SIGINT, signal.SIGINT) == (130, "ready\nonce\nforced\n")


def test_a_start_of_ray_that_is_interrupted_leaves_no_process() -> None:
    """Would catch the raylet that a SIGTERM within `ray.init` leaves, as Ray has not yet noted it as its own; and the
    end of processes that the user's own program started before."""
    script = """
from raytrain.engine import cluster
module._START_SECONDS = 60
sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
mine = subprocess.Popen(sleeper)
def start(_folder):
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does
    cluster.raylet = subprocess.Popen(sleeper)
    print("ready")
    time.sleep(60)
cluster._start_ray = start
with listening() as ending:
    try:
        with cluster.ray_started(ending): print("started")
    except KeyboardInterrupt:
        print(cluster.raylet.wait(), mine.poll())
mine.kill()
sys.exit(ending.code)
"""
    assert run(script, signal.SIGTERM) == (143, "ready\n-9 None\n")


def test_more_signals_of_a_batch_system_interrupt_once() -> None:
    """Would catch an end in good order that the second SIGTERM of `timeout`, to the group, interrupts again."""
    script = """
with listening() as ending:
    ending.ray_is_up(lambda: False)
    try:
        print("ready")
        time.sleep(60)
    except KeyboardInterrupt:
        print("ending")
    os.kill(os.getpid(), signal.SIGTERM)
    print("in good order")
sys.exit(ending.code)
"""
    assert run(script, signal.SIGTERM) == (143, "ready\nending\nin good order\n")


def test_what_was_ignored_stays_ignored() -> None:
    """Would catch a study under `nohup` that ends with its terminal."""
    script = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with listening() as ending:
    print("ready")
    os.kill(os.getpid(), signal.SIGHUP)
    print(ending.has_come)
"""
    assert run(script) == (0, "ready\nFalse\n")


def test_handlers_are_put_back() -> None:
    """Would catch a process of the user's own in which no Ctrl-C works after a study."""
    from raytrain.engine.ending import listening

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with listening():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert signal.set_wakeup_fd(-1) == -1
