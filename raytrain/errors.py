"""User mistakes: one clear line that names the field, the value and what is allowed, and exit code 2."""

import argparse
import difflib
import errno
import functools
import io
import os
import reprlib
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, Protocol

from raytrain.interrupts import INTERRUPTED
from raytrain.uris import without_secrets

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}  # what a full or broken disk answers
_NO_PATH = {errno.ENAMETOOLONG, errno.ELOOP}  # what the name of a file that cannot be there answers, whoever asks


class UserError(ValueError):
    """A mistake that the user can mend. Its text is one line, shown as it is, without a traceback."""


_SHOWN_CHARACTERS = 80  # of a value in a message
_SHOWN_NAMES = 40  # of those that are allowed
_LINE_CHARACTERS = 2000  # of a whole message
_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlong = 3, 40
_repr.maxlist = _repr.maxtuple = _repr.maxdict = 20
_repr.maxstring = _repr.maxother = _SHOWN_CHARACTERS


def shown(value: object) -> str:
    """`value` as Python writes it, for a message: of bounded length, whatever the value is."""
    try:
        return short(_repr.repr(value), 2 * _SHOWN_CHARACTERS)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"


class HostError(UserError):
    """What this machine lacks or cannot reach. No fault of a trial, which may run elsewhere, or later."""


def unwritable(error: OSError, place: object = None) -> str:
    """The one line for a disk that takes no more: what could not be written and what to free; empty for other errors.

    `place` is what was to be written, where the error does not have it.
    """
    if error.errno not in _DISK:
        return ""
    return f"{error.filename or place or 'a file'} cannot be written: {error.strerror}; free space on that disk"


def short(text: str, length: int = _SHOWN_CHARACTERS) -> str:
    """`text` on one line of at most `length` characters, with dots for what is left out of its middle."""
    if len(text) > 4 * length:
        text = text[: 2 * length] + text[-2 * length :]
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-(length // 2 - 3) :]}"


def readable(text: str) -> str:
    """`text` with escapes for what is not UTF-8, such as bytes of a file's name, which tables and pages cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def unknown_value(field: str, value: object, allowed: Iterable[object], hint: str = "") -> UserError:
    """The error for a `value` of `field` outside `allowed`, with `hint`, else the nearest allowed value if one is near.

    >>> str(unknown_value("norm type", "rmsnrm", ["layernorm", "rmsnorm"]))
    "Unknown norm type: 'rmsnrm'. Available: layernorm, rmsnorm. Did you mean rmsnorm?"
    """
    names = [short(str(name)) for name in allowed]
    text = value if isinstance(value, str) else shown(value)
    near = difflib.get_close_matches(text[:_SHOWN_CHARACTERS].lower(), names, n=1)
    hint = f" {hint}" if hint else f" Did you mean {near[0]}?" if near else ""
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    listed = ", ".join(names[:_SHOWN_NAMES]) or "none"
    return UserError(f"Unknown {field}: {shown(value)}. Available: {listed}{more}.{hint}")


class Parser(argparse.ArgumentParser):
    """An argument parser, of the command `prog` or a part of it, whose mistakes are UserErrors: one line."""

    def __init__(
        self,
        prog: str,
        description: str | None = None,
        hint: Callable[[str], str] = lambda argument: "",
        **how: Any,
    ) -> None:
        """`hint` gives what to say of an unknown argument, or nothing: then a flag of a similar name is meant.

        `how` is what argparse takes besides, such as `usage` and `epilog`.
        """
        super().__init__(prog, description=description, allow_abbrev=False, **how)
        self._hint = hint

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        flags, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = short(unknown[0].split("=")[0])
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            hint = self._hint(name) or (f"Did you mean {near[0]}?" if near else "--help lists the flags.")
            raise UserError(f"Unknown argument: {name}. {hint}")
        return flags

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class Command(Protocol):
    """A command line as a function of its arguments, without the program's name; returns the exit status."""

    def __call__(self, argv: list[str] | None = None) -> int: ...


def command(main: Callable[[list[str] | None], int | None]) -> Command:
    """Make `main(argv)` a command line: a UserError becomes one line on stderr and exit code 2; Ctrl-C, one and 130."""

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal or pipe that cannot show a character gets its escape
                stream.reconfigure(errors="backslashreplace")
        try:
            code = main(argv) or 0
            sys.stdout.flush()
            return code
        except UserError as error:
            print(f"error: {short(without_secrets(str(error)), _LINE_CHARACTERS)}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # the reader has left, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python raises it again as it exits
            return 1
        except OSError as error:
            if error.errno in _NO_PATH:
                print(f"error: {short(str(error.filename))} is no path: {error.strerror}", file=sys.stderr)
                return 2
            if not (reason := unwritable(error)):
                raise
            print(f"error: {short(reason, _LINE_CHARACTERS)}, then run the same command again", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED

    return run
