import pytest

from raytrain.config.resolve import read_file
from raytrain.errors import UserError
from raytrain.rundir.parse import parse_json, parse_yaml
from raytrain.sweep.space import load_space


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("-7", -7),
        ("1e3", 1000.0),
        ("1.e-3", 0.001),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("no", "no"),
        ("off", "off"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        ("-.inf", float("-inf")),
        ("{a: 1, b: {a: 2}}", {"a": 1, "b": {"a": 2}}),
        ("base: &b {x: 1, y: 2}\nit: {<<: *b, y: 3}", {"base": {"x": 1, "y": 2}, "it": {"x": 1, "y": 3}}),
    ],
)
def test_yaml_means_what_version_1_2_says(text, value):
    """Would catch: 010 read as 8, 1:30 as 90, `no` as False and a date as an object: YAML 1.1's rules (the tables of
    the core schema, YAML 1.2.2, section 10.3.2, are the independent truth)."""
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"line 3, column 1: the key 'a' stands twice, first in line 1"),
        ("axes:\n  bias: [true]\n  dropout: [0]\n  bias: [false]", r"line 4, column 3: the key 'bias' stands twice"),
        ("{a: 1, 'a': 2}", r"line 1, column 8: the key 'a' stands twice"),
        ("x: !!python/object:os.system {}", r"line 1, column 4: the tag .* none that has a meaning"),
        ("x: !!timestamp 2026-01-01", r"the tag"),
        ("&a [*a]", r"an alias stands for what it is a part of"),
        ("9" * 5000, r"line 1, column 1: 9+\.\.\.9+ is not a whole number"),
        ("[" * 5000, r"nested too deeply"),
        ("!!float x", r"could not convert"),
        ("a: 1\n---\nb: 2", r"line 2, column 1"),
        (f"x: [{'1,' * 100_001}]", r"more than 100,000 values"),
    ],
)
def test_yaml_that_is_ambiguous_or_unbounded_is_one_line(text, message):
    """Would catch: the second of two equal keys that silently wins, code behind a tag, and tracebacks."""
    with pytest.raises(UserError, match=message) as error:
        parse_yaml(text)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_an_alias_bomb_is_counted_and_not_written_out():
    """Would catch: 10^9 values behind nine lines, which fill the memory as soon as anything walks them."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(UserError, match="more than 100,000 values"):
        parse_yaml("\n".join(lines))


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", b"\xff"])
def test_json_that_cannot_be_read_is_one_line(text):
    """Would catch: a RecursionError or a ValueError of the standard library that ends a command in a traceback."""
    with pytest.raises(UserError) as error:
        parse_json(text)
    assert len(str(error.value)) < 300


def test_every_yaml_file_of_a_user_is_read_strictly(tmp_path):
    """Would catch: a second way to read YAML beside the strict one, and a file of 300 KB that takes seconds."""
    path = tmp_path / "my file.yaml"
    path.write_text("axes:\n  bias: [true, false]\n  bias: [true]\n")
    with pytest.raises(UserError, match=r"space \(.*my file\.yaml\) is not YAML: line 3, column 3: the key 'bias'"):
        load_space(str(path))
    path.write_text("n_layer: 2\nn_layer: 010\n")
    with pytest.raises(UserError, match=r"config \(.*\) is not YAML: line 2, column 1: the key 'n_layer'"):
        read_file(str(path))
    path.write_text(f"seed: {'1' * 300_000}")
    with pytest.raises(UserError, match=r"config \(.*\) cannot be read: it has more than 262,144 bytes"):
        read_file(str(path))
