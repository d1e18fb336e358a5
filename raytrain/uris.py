"""Addresses of tracking servers and storages: shown and stored without the secrets in them. Pure.

Secret is what identifies a person: the part before an "@" (`s3://KEY:SECRET@bucket`, `postgresql://user:password@host`)
and every setting of the query that is not known to be harmless (`?access_key=...`).
"""

import re
import urllib.parse
from collections.abc import Sequence

HIDDEN = "***"
# Settings of location and access, of pyarrow's file systems and of the drivers of databases.
_HARMLESS = {"region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion", "enable_tls"}
_HARMLESS |= {"allow_delayed_open", "check_directory_existence_before_creation", "tls_ca_file_path", "project_id"}
_HARMLESS |= {"retry_limit_seconds", "replication", "buffer_size", "default_block_size"}
_HARMLESS |= {"mode", "timeout", "cache", "uri", "sslmode", "charset", "connect_timeout", "host", "port", "options"}
# Where the name before an "@" is a place or a role, which the address is nothing without, and no key.
_NAMED = ("abfs", "abfss", "wasbs", "hdfs", "viewfs", "postgresql", "postgres", "mysql", "mssql", "oracle")
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,40}://"  # of bounded length: else a long word takes time by its square
_PORT = re.compile(r"\d{1,5}")
_IN_TEXT = re.compile(rf"{_SCHEME}[^\s'\"<>()]+")
_IN_ARGUMENT = re.compile(rf"{_SCHEME}.+", re.DOTALL)


def is_uri(text: str) -> bool:
    """Whether `text` is an address, and no path."""
    return "://" in text


def shown(uri: str) -> str:
    """`uri` for people: what is secret in it as `***`."""
    return _rebuilt(uri, HIDDEN)


def stored(uri: str) -> str:
    """`uri` for files: without what is secret in it. Whoever opens it again needs that from elsewhere."""
    return _rebuilt(uri, None)


def has_secret(uri: str) -> bool:
    """Whether `stored` leaves something out of `uri`."""
    return stored(uri) != uri


def joined(uri: str, name: str) -> str:
    """`uri`, a path or an address, with `name` one level deeper: before the query, if it has one."""
    if not is_uri(uri):
        return f"{uri.rstrip('/')}/{name}"
    scheme, _, rest = uri.partition("://")
    user, place = _parted(rest)
    path, query, settings = place.partition("?")
    return f"{scheme}://{user}{'@' if user else ''}{path.rstrip('/')}/{name}{query}{settings}"


def reopened(folder: str, storage: str | None) -> str:
    """`folder`, a `stored` place in `storage`, with the secrets of `storage`; unchanged if it lies elsewhere."""
    if storage is None or not is_uri(folder):
        return folder
    name = urllib.parse.urlsplit(folder).path.rpartition("/")[2]
    candidate = joined(storage, name)
    return candidate if stored(candidate) == folder else folder


def without_secrets(text: str, *uris: str | None) -> str:
    """`text`, such as an error of a library's, without the secrets of addresses in it, or of these `uris`."""
    for uri in filter(None, uris):
        text = text.replace(uri, shown(uri))
        for secret in sorted(_secrets(uri), key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
    return _IN_TEXT.sub(lambda match: shown(match[0]), text)


def shown_command(arguments: Sequence[str]) -> list[str]:
    """The `arguments` of a command line, each that holds an address without its secrets."""
    return [_IN_ARGUMENT.sub(lambda match: shown(match[0]), argument) for argument in arguments]


def _rebuilt(uri: str, hidden: str | None) -> str:
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    user, place = _parted(rest)
    name, colon, _ = user.partition(":")
    if not _is_named(scheme):
        name, colon = "", "" if not user else ":"
    if user:
        kept = name + (f"{':' if name else ''}{hidden}" if colon and hidden else "")
        user = f"{kept}@" if kept else ""
    place, _, fragment = place.partition("#")
    path, question, query = place.partition("?")
    settings = [_setting(part, hidden) for part in query.split("&")] if question else []
    query = "&".join(filter(None, settings))
    # Nothing that we know has a fragment, so it is the rest of a secret with a "#" in it.
    torn = f"#{hidden}" if fragment and hidden else ""
    return f"{scheme}://{user}{path}{'?' if query else ''}{query}{torn}"


def _is_named(scheme: str) -> bool:
    return scheme.partition("+")[0].lower() in _NAMED


def _parted(rest: str) -> tuple[str, str]:
    """What is before the "@" that ends the user, and the rest. A secret may hold "/", "?" and even "@" itself."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        user, _, host = authority.rpartition("@")
        return user, host + rest[len(authority) :]
    if "@" in rest and not _PORT.fullmatch(authority.partition(":")[2] or "0"):
        user, _, place = rest.rpartition("@")
        return user, place
    return "", rest


def _setting(part: str, hidden: str | None) -> str | None:
    name, _, value = part.partition("=")
    if name.lower() in _HARMLESS:
        return f"{name}={_rebuilt(value, hidden)}"
    return f"{name}={hidden}" if hidden else None


def _secrets(uri: str) -> set[str]:
    """The secrets in `uri`, as they are written there and as they are meant; short ones, which any text has, not."""
    scheme, _, rest = uri.partition("://")
    user, place = _parted(rest)
    parts = {*user.split(":", 1)[1:]} | (set() if _is_named(scheme) else {user})
    for setting in place.partition("?")[2].split("&"):
        name, _, value = setting.partition("=")
        parts |= _secrets(value) if name.lower() in _HARMLESS else {value, *value.split("#")}
    return {text for part in parts for text in (part, urllib.parse.unquote(part)) if len(text) > 3}
