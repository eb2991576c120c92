from __future__ import annotations

import pytest

from compressor.config.document import dotted, parse_document, read_document
from compressor.errors import ConfigError


def test_the_line_of_a_value_is_found() -> None:
    document = parse_document(b"a: 1\nb:\n  - x\n  - y: [1, 2]\n")
    assert document.tree == {"a": 1, "b": ["x", {"y": [1, 2]}]}
    assert document.line(("b", 1, "y")) == 4
    assert document.line(("b", 1, "z")) == 4, "the nearest enclosing value"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("0x10", 16),
        (".5", 0.5),
        ("-2.5e+3", -2500.0),
        ("7", 7),
        ("true", True),
        ("on", "on"),
        ("no", "no"),
        ("null", None),
        ("~", None),
        ("", None),
        ("1.2.3", "1.2.3"),
        ("012", "012"),
        ('"7"', "7"),
        ("2026-01-01", "2026-01-01"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_document(f"a: {text}".encode()).tree["a"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: 2\na: 3\n", "is repeated"),
        (b"a: [1, 2\n", "not valid YAML"),
        (b"a: !!python/object/apply:os.system [echo]\n", "not supported|constructor"),
        (b"a: &a {b: 1}\nc:\n  <<: *a\n", "merge keys"),
        (b"a: &a [*a]\n", "expands to too much|not valid"),
        (b"? [1, 2]\n: 3\n", "plain word"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"a: 1\n" + b"#" * (1 << 20), "too large"),
    ],
)
def test_malicious_or_invalid_files_are_errors(content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_document(content)


def test_exponential_aliases_are_an_error() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match="expands to too much"):
        parse_document("\n".join(lines).encode())


def test_the_error_of_a_missing_file_has_a_remedy(tmp_path) -> None:
    with pytest.raises(ConfigError, match="init"):
        read_document(tmp_path / "none.yaml")


def test_dotted_joins_keys_and_indices() -> None:
    assert dotted(("passes", 1, "temperature", "start")) == "passes[1].temperature.start"
