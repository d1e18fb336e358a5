import signal
import subprocess
import sys

import pytest

from raytrain.errors import command
from raytrain.interrupts import INTERRUPTED, held


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    """Would catch an import or a start of Ray that is left midway, a Ctrl-C that is lost, and a handler left behind."""
    before, reached = signal.getsignal(signal.SIGINT), []

    def block() -> None:
        with held():
            signal.raise_signal(signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached
    assert signal.getsignal(signal.SIGINT) is before
    with held():
        pass


def test_a_second_ctrl_c_ends_the_process() -> None:
    """Would catch a Ray that never starts, and cannot be left."""
    code = "import signal; from raytrain.interrupts import held\nwith held():\n"
    code += "    signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT); print('on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "")


def test_a_command_that_is_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a traceback in answer to Ctrl-C."""

    def main(argv: list[str] | None) -> int:
        raise KeyboardInterrupt

    assert command(main)([]) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
