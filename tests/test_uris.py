"""Addresses without their secrets: what is printed, stored and sent has none."""

import pytest

from raytrain import uris

# address, as it is shown, as it is stored
ADDRESSES = [
    ("/folder/a?b@c", "/folder/a?b@c", "/folder/a?b@c"),
    ("s3://bucket/p", "s3://bucket/p", "s3://bucket/p"),
    ("s3://KEY:SECRET@bucket/p", "s3://***@bucket/p", "s3://bucket/p"),
    ("s3://KEY:SE/CR@ET@bucket/p?region=x", "s3://***@bucket/p?region=x", "s3://bucket/p?region=x"),
    (
        "s3://b/p?access_key=KEY&secret_key=SECRET&region=x&endpoint_override=127.0.0.1:80",
        "s3://b/p?access_key=***&secret_key=***&region=x&endpoint_override=127.0.0.1:80",
        "s3://b/p?region=x&endpoint_override=127.0.0.1:80",
    ),
    (
        "s3://b/p?endpoint_override=http://me:SECRET@host",
        "s3://b/p?endpoint_override=http://***@host",
        "s3://b/p?endpoint_override=http://host",
    ),
    ("http://me:SECRET@host:5000/x", "http://***@host:5000/x", "http://host:5000/x"),
    ("https://TOKEN@host/x", "https://***@host/x", "https://host/x"),
    ("http://host:5000/a@b", "http://host:5000/a@b", "http://host:5000/a@b"),
    ("https://host/x?token=SECRET#SECRET", "https://host/x?token=***#***", "https://host/x"),
    ("postgresql://me:SECRET@host/db", "postgresql://me:***@host/db", "postgresql://me@host/db"),
    ("mysql+pymysql://me:S/E?C#R@ET@host/db", "mysql+pymysql://me:***@host/db", "mysql+pymysql://me@host/db"),
    (
        "postgresql+psycopg2://host/db?user=me&password=SECRET&sslmode=require",
        "postgresql+psycopg2://host/db?user=***&password=***&sslmode=require",
        "postgresql+psycopg2://host/db?sslmode=require",
    ),
    ("sqlite:////home/a@b/m.db?timeout=5", "sqlite:////home/a@b/m.db?timeout=5", "sqlite:////home/a@b/m.db?timeout=5"),
    ("abfs://container:SECRET@account.net/p", "abfs://container:***@account.net/p", "abfs://container@account.net/p"),
    ("abfs://:SECRET@account.net/p", "abfs://***@account.net/p", "abfs://account.net/p"),
    ("hdfs://me@host:8020/p", "hdfs://me@host:8020/p", "hdfs://me@host:8020/p"),
    ("databricks://profile", "databricks://profile", "databricks://profile"),
]  # fmt: skip


@pytest.mark.parametrize(("uri", "shown", "stored"), ADDRESSES)
def test_no_secret_is_shown_or_stored(uri: str, shown: str, stored: str) -> None:
    """Would catch a password or a key in a log, a report, MLflow or study.json; and an address that no longer leads to
    its place once it was stored."""
    assert uris.shown(uri) == shown
    assert uris.stored(uri) == stored
    assert uris.stored(stored) == stored
    assert uris.has_secret(uri) == (uri != stored)
    for text in (shown, stored, *uris.shown_command(["--storage", uri, f"--tracking_uri={uri}"])):
        assert not any(word in text for word in ("SECRET", "KEY", "TOKEN", "ET@"))


@pytest.mark.parametrize("uri", [uri for uri, *_ in ADDRESSES if "SECRET" in uri])
def test_the_words_of_a_library_have_no_secret(uri: str) -> None:
    """Would catch a secret in the text of an error, where it stands alone or within another address."""
    said = f"cannot open '{uri}': bad signature of SECRET (see {uri}/x) for https://KEY:other@host/y"
    text = uris.without_secrets(said, uri)
    assert not any(word in text for word in ("SECRET", "KEY", "other"))
    assert text.startswith("cannot open '")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("/a/b", "/a/b/t0"),
        ("/a/b?c", "/a/b?c/t0"),
        ("s3://b/p/", "s3://b/p/t0"),
        ("s3://b/p?region=x&scheme=http", "s3://b/p/t0?region=x&scheme=http"),
        ("s3://b?region=x", "s3://b/t0?region=x"),
        ("s3://KEY:SE%3FCRET@b/p?region=x", "s3://KEY:SE%3FCRET@b/p/t0?region=x"),
    ],
)
def test_a_name_goes_into_the_path(place: str, expected: str) -> None:
    """Would catch trials that share one place, since their names stand behind its settings."""
    assert uris.joined(place, "t0") == expected


@pytest.mark.parametrize("storage", ["s3://KEY:SECRET@b/p?region=x", "s3://b/p?secret_key=SECRET&region=x"])
def test_a_stored_place_is_opened_with_the_secrets(storage: str) -> None:
    """Would catch a trial that cannot reach its checkpoints, and another storage's secrets sent to a place."""
    folder = uris.stored(uris.joined(storage, "t0"))
    assert uris.reopened(folder, storage) == uris.joined(storage, "t0")
    assert uris.reopened(folder, None) == folder
    for other in ("s3://other/p/t0?region=x", "s3://b/p/deeper/t0?region=x", "/b/p/t0"):
        assert uris.reopened(other, storage) == other


def test_a_long_word_is_no_address():
    """Would catch: minutes for a message with a long word in it, whose every letter may begin an address."""
    word = "x" * 1_000_000
    assert uris.without_secrets(word) == word
