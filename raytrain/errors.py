"""User mistakes: one clear line that names the field, the value and what is allowed, and exit code 2."""

import argparse
import difflib
import functools
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn, Protocol

from raytrain.interrupts import INTERRUPTED


class UserError(ValueError):
    """A mistake that the user can mend. Its text is one line, shown as it is, without a traceback."""


def unknown_value(field: str, value: object, allowed: Iterable[object]) -> UserError:
    """The error for a `value` of `field` outside `allowed`, with the nearest allowed value if one is near.

    >>> str(unknown_value("norm type", "rmsnrm", ["layernorm", "rmsnorm"]))
    "Unknown norm type: 'rmsnrm'. Available: layernorm, rmsnorm. Did you mean rmsnorm?"
    """
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(value).lower(), names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return UserError(f"Unknown {field}: {value!r}. Available: {', '.join(names) or 'none'}.{hint}")


class Parser(argparse.ArgumentParser):
    """An argument parser, of the command `prog` or a part of it, whose mistakes are UserErrors: one line."""

    def __init__(self, prog: str, description: str | None = None) -> None:
        super().__init__(prog, description=description, allow_abbrev=False)

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        flags, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            hint = f" Did you mean {near[0]}?" if near else " --help lists the flags."
            raise UserError(f"Unknown argument: {name}.{hint}")
        return flags

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class Command(Protocol):
    def __call__(self, argv: list[str] | None = None) -> int: ...


def command(main: Callable[[list[str] | None], int | None]) -> Command:
    """Make `main(argv)` a command line: a UserError becomes one line on stderr and exit code 2; Ctrl-C, one and 130."""

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED

    return run
