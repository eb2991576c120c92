"""Read YAML files into plain values, with the line of each value.

Scalars follow the core schema of YAML 1.2 (``1e-3`` is a number, ``on`` is a string). Tags and
duplicate keys are refused; size, depth and expansion are bounded, so that a hostile file ends in an
error instead of exhausting memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compressor.errors import ConfigError, Problem, UsageError
from compressor.foreign_files.limits import PIPELINE
from compressor.foreign_files.opening import read_bytes

_MAX_NODES = 50_000
_MAX_DEPTH = 40
_CORE = "tag:yaml.org,2002:"
_TAGS = frozenset({"map", "seq", "str", "int", "float", "bool", "null"})

Location = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own way


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
    ("float", r"^[-+]?[0-9]+[eE][-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$", "-+."),
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
):
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(_pattern), list(_first))
_Loader.add_implicit_resolver(_CORE + "null", re.compile(r"^$"), [""])
_Loader.add_implicit_resolver(_CORE + "merge", re.compile(r"^<<$"), ["<"])


@dataclass(frozen=True, slots=True)
class Document:
    """Values of a file, and the line of each, counted from 1."""

    file: Path | None
    tree: Any
    lines: Mapping[Location, int] = field(default_factory=dict)

    def line(self, location: Location) -> int | None:
        """Return the line of a value, or of the closest enclosing value."""
        for end in range(len(location), -1, -1):
            if (found := self.lines.get(location[:end])) is not None:
                return found
        return None

    def problem(
        self,
        location: Location,
        what: str,
        *,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> Problem:
        """Return a problem with the value at ``location``."""
        return Problem(dotted(location), what, expected, remedy, self.file, self.line(location))


def dotted(location: Location) -> str:
    """Format ``("passes", 1, "bits")`` as ``passes[1].bits``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_document(path: Path) -> Document:
    """Parse a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, is too large, repeats a key or uses
            a tag.
    """
    try:
        content = read_bytes(path, PIPELINE, UsageError, None)
    except UsageError as error:
        is_missing = not path.exists() and not path.is_symlink()
        remedy = "`autoglm-compress init` writes a starter pipeline" if is_missing else error.remedy
        what = error.what.removeprefix(f"{path} ")
        raise ConfigError([Problem("", what, remedy=remedy, file=path)]) from error
    return parse_document(content, path)


def parse_document(content: bytes, path: Path | None = None) -> Document:
    """Parse YAML text; problems name ``path``. Errors as ``read_document``."""
    if len(content) > PIPELINE.most_bytes:
        limit = f"at most {PIPELINE.most_bytes}"
        raise ConfigError([Problem("", f"{len(content)} bytes: too large", limit, None, path)])
    try:
        loader = _Loader(content)
        try:
            node = loader.get_single_node()
            reader = _Reader(loader, path)
            tree = reader.value(node, ()) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else None
        raise ConfigError(
            [
                Problem(
                    "", f"is not valid YAML: {error.problem or error.context}", file=path, line=line
                )
            ]
        ) from error
    except RecursionError as error:
        raise ConfigError(
            [Problem("", "is nested too deeply", f"at most {_MAX_DEPTH} levels", None, path)]
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            [Problem("", f"is not valid YAML: {str(error).splitlines()[0]}", file=path)]
        ) from error
    if reader.problems:
        raise ConfigError(reader.problems)
    return Document(path, tree, reader.lines)


class _Reader:
    """Converts the node graph to plain values, and counts the expanded nodes."""

    def __init__(self, loader: _Loader, path: Path | None) -> None:
        self.loader = loader
        self.path = path
        self.lines: dict[Location, int] = {}
        self.problems: list[Problem] = []
        self.count = 0

    def value(self, node: yaml.Node, location: Location) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(location, line)
        self.count += 1
        if self.count > _MAX_NODES or len(location) > _MAX_DEPTH:
            limit = f"at most {_MAX_NODES} values, {_MAX_DEPTH} levels deep"
            raise ConfigError(
                [Problem("", "expands to too much (aliases?)", limit, None, self.path, line)]
            )
        if node.tag.removeprefix(_CORE) not in _TAGS:
            self._problem(
                location, line, f"the tag {node.tag!r} is not supported", "write a plain value"
            )
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*location, index)) for index, child in enumerate(node.value)]
        return self.loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag.endswith(":merge"):
                self._problem(
                    location, line, "merge keys (<<) are not supported", "repeat the values"
                )
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(location, line, "a key must be a plain word", None)
                continue
            key = str(key_node.value)
            if key in result:
                self._problem(
                    (*location, key), line, f"the key {key!r} is repeated", "keep one of them"
                )
            self.lines[(*location, key)] = line
            result[key] = self.value(value_node, (*location, key))
        return result

    def _problem(self, location: Location, line: int, what: str, remedy: str | None) -> None:
        self.problems.append(Problem(dotted(location), what, None, remedy, self.path, line))
