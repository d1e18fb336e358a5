"""The lock file of a corpus: packages of a registry, each pinned to one wheel, with its licence. Pure.

    # comments
    networkx==3.6.1 --hash=sha256:0123... # BSD-3-Clause

These are requirements as pip reads them, so that pip downloads and verifies them. What else pip would read from such a
file (options, addresses, paths) is refused.
"""

import email.message
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raytrain.errors import UserError, short, shown

_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9.+!_-]+) "
    r"--hash=sha256:(?P<sha256>[0-9a-f]{64})\s+# (?P<licence>\S.*)"
)
_HEAD = """\
# Packages for `python -m raytrain.data fetch`, each pinned to one wheel, with the licence that it states.
# Made by `fetch --packages THIS --lock`: with names, of those; without, of the names here at their newest versions.
"""
# Words of licences that allow any use, and of those (or of parts of one) that ask for more than to be named.
_PERMISSIVE = re.compile(
    r"\b(MIT|MIT-CMU|0?BSD|Apache|ISC|ISCL|PSF|Python Software Foundation|PSF-2\.0|HPND|Zlib|Unlicense|CC0|ZPL|Zope)\b",
    re.IGNORECASE,
)
_OTHERS = re.compile(r"GPL|General Public|MPL|Mozilla|EPL|Eclipse|CDDL|CeCILL|CC-BY|Commons|Proprietary", re.IGNORECASE)


@dataclass(frozen=True)
class Package:
    """One package: its wheel is known by `sha256` (hex). `licence` is what the package's metadata state."""

    name: str
    version: str
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """The line that pip reads."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def read_lock(path: Path) -> list[Package]:
    """The packages of a lock file, sorted by name.

    Raises UserError, with the line, for a file that cannot be read, what is no pinned requirement with a licence, a
    package that stands twice, and a file without packages.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the lock file {path}: {error}") from error
    packages: dict[str, Package] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise UserError(
                f"{path}, line {number}: {shown(line)} must be "
                "NAME==VERSION --hash=sha256:HEX # LICENCE, as --lock writes it"
            )
        package = Package(**match.groupdict())
        if packages.setdefault(project(package.name), package) is not package:
            raise UserError(f"{path}, line {number}: {package.name} stands twice")
    if not packages:
        raise UserError(f"The lock file {path} has no packages; --lock NAME ... makes one")
    return [packages[name] for name in sorted(packages)]


def format_lock(packages: Sequence[Package]) -> str:
    """The text of a lock file."""
    ordered = sorted(packages, key=lambda package: project(package.name))
    return _HEAD + "".join(f"{package.requirement} # {package.licence}\n" for package in ordered)


def project(name: str) -> str:
    """The normalised name of a project, as registries compare them (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(metadata: email.message.Message) -> str:
    """The licence that a package's metadata state: the expression, else classifiers, else the text of the field."""
    if expression := metadata.get("License-Expression"):
        return short(expression)
    classifiers = [value.split(" :: ") for value in metadata.get_all("Classifier", [])]
    names = [parts[-1] for parts in classifiers if parts[0] == "License" and parts[-1] != "OSI Approved"]
    return short(", ".join(names) or (metadata.get("License") or "").strip().partition("\n")[0] or "unknown")


def is_permissive(licence: str) -> bool:
    """Whether `licence` is one that asks for no more than to be named, in all its parts."""
    return bool(_PERMISSIVE.search(licence)) and not _OTHERS.search(licence)
