"""Which files of a package are text to train on: of what domain, and why a file is left out. Pure."""

import posixpath
import re

CODE, DOCS, OTHER = "code", "docs", "other"  # Python; prose; other programming languages

# The endings of JavaScript and TypeScript, of C and its kin, and of others that packages carry.
_SCRIPTS = ("js", "mjs", "cjs", "jsx", "ts", "tsx")
_COMPILED = ("c", "h", "cc", "hh", "cpp", "hpp", "cxx", "hxx", "cu", "cs", "java", "scala", "kt", "swift", "go", "rs")
_OTHER_LANGUAGES = (*_SCRIPTS, *_COMPILED, "jl", "lua", "rb", "php")
_DOMAINS = {"py": CODE, "rst": DOCS, "md": DOCS, **dict.fromkeys(_OTHER_LANGUAGES, OTHER)}
# Prose that is the same in every package, or a list of changes.
_NO_PROSE = re.compile(
    r"(licen[cs]e|copying|copyright|notice|authors|contribut|third.?party|code.of.conduct|change|history|news|release)",
    re.IGNORECASE,
)
_HIDDEN = re.compile(r"(^|/)\.")  # for tools, not for readers
_TESTS = re.compile(r"(^|/)_?tests?/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.[^/]*$", re.IGNORECASE)
_GENERATED = re.compile(
    r"(generated (by|from|automatically)|automatically generated|auto-?generated|do not edit)", re.IGNORECASE
)
_HEAD = 1000  # characters in which a generated file says so
_LEAST = 200  # characters of a document
_LINE = 1000  # characters; longer lines are data, or minified
_LETTERS = 0.5  # of the characters that are not space; tables of numbers have fewer


def domain_of(path: str) -> str | None:
    """The domain of a file by its name: CODE, DOCS or OTHER; None for any other file.

    Tests, minified code, hidden folders, licences and lists of changes have none. A wheel's METADATA are DOCS, for the
    description in them.
    """
    folder, name = posixpath.split(path)
    if name == "METADATA" and folder.endswith(".dist-info"):
        return DOCS
    stem, dot, ending = name.rpartition(".")
    domain = _DOMAINS.get(ending.lower()) if dot else None
    if _TESTS.search(path) or _HIDDEN.search(path) or ".dist-info/" in path or stem.endswith(".min"):
        return None
    return None if domain == DOCS and _NO_PROSE.match(stem) else domain


def text_of(content: bytes) -> str | None:
    """The text of a file: UTF-8 without its byte order mark, lines ended by a line feed; None for what is no text."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.replace("\r\n", "\n").replace("\r", "\n")


def fault_of(text: str) -> str | None:
    """Why `text` is no document to train on; None if it is one."""
    if len(text.strip()) < _LEAST:
        return "short"
    if _GENERATED.search(text[:_HEAD]):
        return "generated"
    if max(map(len, text.split("\n"))) > _LINE:
        return "long lines"
    visible = "".join(text.split())
    if sum(map(str.isalpha, visible)) < _LETTERS * len(visible):
        return "data"
    return None


def normalised(text: str) -> str:
    """`text` without blank lines and spaces at the ends of lines: files that differ in these alone are equal."""
    return "\n".join(stripped for line in text.split("\n") if (stripped := line.rstrip()))
