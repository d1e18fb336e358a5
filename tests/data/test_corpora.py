import gzip
import json
import os
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from raytrain.data import documents
from raytrain.data.corpora import Source, find_sources, stdlib_sources
from raytrain.data.documents import read_documents
from raytrain.errors import UserError

# Lines, quotes, several scripts, an astral character, and a text longer than any read block.
TEXTS = ["one\ntwo\n", 'quo"te\\n', "né 漢字 \U0001f600", "a" * 1_500_000 + "\n", "last, without a line end"]


def read(path: Path, format: str, column: str = "text") -> list[str | None]:
    return [text for texts, _ in read_documents(Source(path.name, path, format), column) for text in texts]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_default_corpus_is_the_standard_library_without_tests_and_packages():
    """Catches packages or tests leaking into the corpus, and an order that depends on the file system."""
    root = Path(sysconfig.get_path("stdlib"))
    keys = [source.key for source in stdlib_sources()]
    assert keys == sorted(keys)
    assert {"json/decoder.py", "asyncio/events.py", "typing.py"} <= set(keys)
    assert all((root / key).read_bytes() for key in ("json/decoder.py", "typing.py"))
    parts = {part for key in keys for part in key.split("/")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert not any("_sysconfigdata" in key for key in keys)  # has the paths of the machine that built Python
    assert len(keys) > 500


def test_the_corpus_is_read_byte_for_byte_and_holds_no_zero_byte():
    """Catches newline translation, and a separator that is ambiguous because the text holds it."""
    for source in stdlib_sources()[:100]:
        ((texts, fraction),) = read_documents(source, "text")
        assert [text.encode() for text in texts] == [source.path.read_bytes()]
        assert "\0" not in texts[0]
        assert fraction == 1.0


def test_the_formats_give_the_same_documents(tmp_path):
    """Catches a reader that loses, cuts or re-encodes documents; a null row must keep its place."""
    rows = [{"id": i, "text": text, "more": {"x": [i]}} for i, text in enumerate(TEXTS)]
    rows.insert(2, {"id": 9, "text": None, "more": {"x": []}})
    expected = [row["text"] for row in rows]
    jsonl = write_jsonl(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl.read_bytes()))
    (tmp_path / "unended.jsonl").write_bytes(jsonl.read_bytes().rstrip(b"\n"))
    assert read(jsonl, "jsonl") == expected
    assert read(tmp_path / "a.parquet", "parquet") == expected
    assert read(tmp_path / "a.jsonl.gz", "jsonl") == expected
    assert read(tmp_path / "unended.jsonl", "jsonl") == expected
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text(text, encoding="utf-8")
        assert "".join(read(tmp_path / f"{i}.txt", "text")) == text


def test_a_long_text_is_cut_at_line_ends_the_same_way_however_it_is_read(tmp_path, monkeypatch):
    """Catches characters lost or split at a block border, and document numbers that depend on the block size."""
    text = "".join(f"línea {i} " + "漢" * (i % 90) + "\r\n" for i in range(6000))
    (tmp_path / "a.txt").write_bytes(text.encode())
    pieces = read(tmp_path / "a.txt", "text")
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 65536
    assert all(piece.endswith("\n") for piece in pieces)
    monkeypatch.setattr("raytrain.data.documents._READ_BYTES", 1001)
    assert read(tmp_path / "a.txt", "text") == pieces


def test_sources_are_found_by_path_folder_and_glob_and_their_keys_do_not_hang_on_the_place(tmp_path):
    """Catches hidden or repeated files being read, and a data folder that cannot be moved without a new split."""
    for name in ("x/b.txt", "x/a.jsonl", "x/deep/c.parquet", "x/.hidden/d.txt", "x/.e.txt", "x/f.jsonl.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folder = str(tmp_path / "x")
    found = find_sources([folder, folder + "/b.txt", folder + "/*.jsonl"])
    assert [(source.key, source.format) for source in found] == [
        ("a.jsonl", "jsonl"),
        ("b.txt", "text"),
        ("deep/c.parquet", "parquet"),
        ("f.jsonl.gz", "jsonl"),
    ]
    assert [source.key for source in find_sources([folder], "jsonl")] == ["a.jsonl", "f.jsonl.gz"]
    assert find_sources([folder + "/b.txt"], "jsonl")[0].format == "jsonl"
    (tmp_path / "x").rename(tmp_path / "y")
    assert [source.key for source in find_sources([str(tmp_path / "y")])] == [source.key for source in found]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("A.JSONL", "jsonl"),
        ("a.Json.GZ", "jsonl"),
        ("a.jsonl.zst", "jsonl"),
        ("a.ndjson.bz2", "jsonl"),
        ("a.jsonlines.lz4", "jsonl"),
        ("A.PARQUET", "parquet"),
        ("a.parq", "parquet"),
        ("a.TXT.GZ", "text"),
        ("a.v2.txt", "text"),
        ("readme", "text"),
    ],
)
def test_the_ending_gives_the_format_in_either_case(tmp_path, name, format):
    """Catches JSON lines that are trained on as raw text, with their braces and keys."""
    rows = [{"text": "x"}, {"text": "y"}]
    if format == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        plain = "".join(json.dumps(row) + "\n" for row in rows) if format == "jsonl" else "xy"
        kind = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}.get(Path(name).suffix.lower())
        with pa.output_stream(str(tmp_path / name), compression=kind) as stream:
            stream.write(plain.encode())
    (source,) = find_sources([str(tmp_path)])
    assert source.format == format
    assert "".join(text for texts, _ in read_documents(source, "text") for text in texts) == "xy"


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.jsonl.XZ", "a.tgz", "a.7z"])
def test_an_archive_is_refused(tmp_path, name):
    """Catches a tar file whose headers and padding are trained on as text."""
    (tmp_path / name).write_text("plain")
    for named in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=rf"{name} is an archive, or compressed in a way that is not read"):
            find_sources([str(named)])
    write_jsonl(tmp_path / "b.jsonl", [])
    assert [source.key for source in find_sources([str(tmp_path)], "jsonl")] == ["b.jsonl"]


def test_folders_behind_links_are_read_once(tmp_path):
    """Catches documents behind a link that are left out, read twice, or for ever where a link leads back."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for folder in (data / "real", elsewhere):
        folder.mkdir(parents=True)
        (folder / f"{folder.name}.txt").write_text(folder.name)
    (data / "a_link").symlink_to(elsewhere)
    (data / "b_link").symlink_to(elsewhere)
    (data / "back").symlink_to(data)
    (data / "real" / "up").symlink_to("..")
    (data / "another_name.txt").symlink_to(data / "real" / "real.txt")
    assert [source.key for source in find_sources([str(data)])] == ["a_link/elsewhere.txt", "real/real.txt"]


def test_what_leads_nowhere_is_named(tmp_path):
    """Catches a dangling link that is called a write error, and a pipe on which reading waits for ever."""
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "moved.txt")
    for named in (tmp_path, tmp_path / "gone.txt", tmp_path / "*.txt"):
        with pytest.raises(UserError, match=r"gone\.txt is a link to .*moved\.txt, which is not there"):
            find_sources([str(named)])
    (tmp_path / "gone.txt").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe is neither a file nor a folder"):
        find_sources([str(tmp_path)])


def test_a_name_that_is_not_utf_8(tmp_path):
    """Catches a file of an older system that ends the reading of a whole folder."""
    for name in (b"caf\xe9.txt", b"caf\xe9.jsonl.gz", b"caf\xe9.parquet"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        if name.endswith(b"parquet"):
            with path.open("wb") as file:
                pq.write_table(pa.table({"text": ["x"]}), file)
        else:
            path.write_bytes(gzip.compress(b'{"text": "x"}') if name.endswith(b"gz") else b"x")
    found = find_sources([str(tmp_path)])
    assert [text for source in found for texts, _ in read_documents(source, "text") for text in texts] == ["x"] * 3


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.array(["a", None, "b"], pa.large_string()),
        pa.array(["a", None, "b"], pa.string_view()),
        pa.array([b"a", None, b"b"]),
        pa.array([b"a", None, b"b"], pa.binary_view()),
        pa.array([b"a", None, b"b"], pa.binary(1)),
        pa.array([b"a", None, b"b"]).dictionary_encode(),
    ],
    ids=lambda values: str(values.type).replace(" ", ""),
)
def test_every_type_that_holds_text_is_read(tmp_path, values):
    """Catches a column of pandas categories, or of another writer's types, that is called no text."""
    pq.write_table(pa.table({"text": values, "other": [1, 2, 3]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "parquet") == ["a", None, "b"]


def test_a_column_of_nulls_has_no_documents(tmp_path):
    """Catches one part of a data set, whose texts are all null, that stops the reading of the others."""
    pq.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "parquet") == [None, None]


def test_a_nested_column(tmp_path):
    """Catches `doc.text` not found in a struct, a null struct that loses its row, and a name with a dot of its own."""
    rows = [{"doc": {"text": "a", "in": {"most": "x"}}}, {"doc": None}, {"doc": {"text": None, "in": None}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", rows)
    for format in ("parquet", "jsonl"):
        assert read(tmp_path / f"a.{format}", format, "doc.text") == ["a", None, None]
        assert read(tmp_path / f"a.{format}", format, "doc.in.most") == ["x", None, None]
    pq.write_table(pa.table({"doc.text": ["flat"]}), tmp_path / "b.parquet")
    write_jsonl(tmp_path / "b.jsonl", [{"doc.text": "flat"}])
    for format in ("parquet", "jsonl"):
        assert read(tmp_path / f"b.{format}", format, "doc.text") == ["flat"]
    with pytest.raises(UserError, match=r"Column doc .*holds struct.*name a field of it, as doc\.text"):
        read(tmp_path / "a.parquet", "parquet", "doc")
    with pytest.raises(UserError, match=r"Unknown field of column doc .*'txt'.* Did you mean text\?"):
        read(tmp_path / "a.parquet", "parquet", "doc.txt")


def test_lone_surrogates_come_through_every_reader(tmp_path):
    """Catches one half of a pair, escaped or as bytes, that stops the reading of a file of millions of documents."""
    rows = ["a", "b\ud800c", "\U0001f600 d", None]
    as_bytes = [None if row is None else row.encode("utf-8", "surrogatepass") for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_bytes(b"".join(b'{"text": "%s"}\n' % row for row in as_bytes if row is not None))
    pq.write_table(pa.table({"text": pa.array(as_bytes)}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_bytes(b"".join(row for row in as_bytes if row is not None))
    assert read(tmp_path / "a.jsonl", "jsonl") == rows
    assert read(tmp_path / "b.jsonl", "jsonl") == rows[:3]
    assert read(tmp_path / "a.parquet", "parquet") == rows
    assert read(tmp_path / "a.txt", "text") == ["".join(rows[:3])]


def test_a_line_without_end_is_bounded(tmp_path, monkeypatch):
    """Catches a compressed file of one endless line that is copied again for each block, until memory is full."""
    monkeypatch.setattr(documents, "_LINE_BYTES", 3_000_000)
    monkeypatch.setattr(documents, "_READ_BYTES", 100_000)
    line = json.dumps({"text": "a" * 2_900_000})
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(f"{line}\n{line}".encode()))
    assert [len(text) for text in read(tmp_path / "a.jsonl.gz", "jsonl")] == [2_900_000] * 2
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"a" * 50_000_000))
    with pytest.raises(UserError, match=r"a\.jsonl\.gz has a line above 3,000,000 bytes"):
        read(tmp_path / "a.jsonl.gz", "jsonl")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": 3}', "document 3 has 3 as text, not a string"),
        ('["text"]', r"document 3 is \['text'\], not an object with 'text'"),
        ("[" * 5000, "document 3 "),
        ('{"text": ' + "9" * 5000 + "}", "document 3"),
    ],
)
def test_the_line_that_cannot_be_read_is_named(tmp_path, line, words):
    """Catches a traceback for nesting or digits without end, and an error that does not name the line."""
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{{"text": "b"}}\n{line}\n')
    with pytest.raises(UserError, match=words) as error:
        read(tmp_path / "a.jsonl", "jsonl")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("name", ["nothing.txt", "*.none", "empty"])
def test_nothing_to_read_is_an_error_that_names_it(tmp_path, name):
    """Catches a mistyped path that silently prepares nothing."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"Nothing to read at .*" + name.replace("*", r"\*")):
        find_sources([str(tmp_path / name)])


def test_a_wrong_column_is_named_with_a_near_match(tmp_path):
    """Catches a mistyped column that gives no documents (JSON) or a traceback (Parquet)."""
    rows = [{"text": "a", "id": 1}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    pa.feather.write_feather(pa.Table.from_pylist(rows), str(tmp_path / "a.arrow"))
    for format in ("jsonl", "parquet", "arrow"):
        with pytest.raises(UserError, match=r"Unknown column .*'txt'. Available: text, id. Did you mean text\?"):
            read(tmp_path / f"a.{format}", format, "txt")
    with pytest.raises(UserError, match=r"Column id .* holds int64, not strings"):
        read(tmp_path / "a.parquet", "parquet", "id")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"caf\xe9"),
        ("a.jsonl", b'{"text": "a"}\n{"text": oops}\n'),
        ("a.parquet", b"PAR?"),
        ("a.arrow", b""),
        ("b.arrow", b"ARROW1 and no more"),
        ("c.arrow", b'{"text": "a"}'),
        ("b.jsonl", b"[]"),
    ],
)
def test_an_unreadable_file_is_one_line_that_names_it(tmp_path, name, content):
    """Catches tracebacks from deep in pyarrow, and bytes that are no UTF-8 being replaced in silence."""
    (tmp_path / name).write_bytes(content)
    (source,) = find_sources([str(tmp_path / name)])
    with pytest.raises(UserError, match=name) as error:
        list(read_documents(source, "text"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_has_no_text(tmp_path, name):
    """Catches a crash on empty files, which folders of crawled text have."""
    (tmp_path / name).touch()
    (source,) = find_sources([str(tmp_path / name)])
    assert not any(text for texts, _ in read_documents(source, "text") for text in texts)
