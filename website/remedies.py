"""Collect every error message that has a remedy from the source code, without importing it.

A message is a call with an argument ``remedy``: of an error class, or of a function or record that
is declared with a parameter of that name. Formatted values appear as ``…``. Where a remedy comes
from somewhere else (``error.remedy``, a parameter), the message is collected there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from website.source_texts import (
    ROOT,
    SourceFile,
    UnknownRemedyError,
    called_name,
    is_function,
    target_name,
)

PACKAGES = ("compressor", "passes", "calibration")
_PROBLEM_NAMES = ("what", "reason", "text", "problem", "contents")
"""Names of the parameters that hold the problem."""
_ADVICE = re.compile(r": (?:leave|use|set|name|lower|give|add|choose|remove) |, or leave ")
"""An instruction within the text of a ``ValueError``, which pydantic gives no remedy."""


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """An error message and its remedy."""

    file: str
    """Path of the module, from the root of the repository."""
    line: int
    what: str
    remedy: str


def collect() -> list[Message]:
    """Return all messages with a remedy, in the order of the files.

    Raises:
        UnknownRemedyError: A remedy is written in a form that is not known here.
    """
    files = [file for name in PACKAGES for file in sorted((ROOT / name).rglob("*.py"))]
    return _collect([_Messages(file) for file in files])


def read_module(file: Path) -> list[Message]:
    """Return the messages of one file; errors as ``collect``."""
    return _collect([_Messages(file)])


def _collect(modules: list[_Messages]) -> list[Message]:
    signatures: dict[str, list[list[str]]] = {}
    for module in modules:
        for name, parameters in module.signatures.items():
            signatures.setdefault(name, []).extend(parameters)
    found = {message for module in modules for message in module.messages(signatures)}
    return sorted(message for message in found if re.search(r"[a-z]{2}", message.remedy))


class _Messages(SourceFile):
    """The messages of one source file."""

    @cached_property
    def signatures(self) -> dict[str, list[list[str]]]:
        """Name of a function, method or record with a ``remedy`` to its parameters."""
        found: dict[str, list[list[str]]] = {}
        for name, parameters in self._callables_with_remedy():
            found.setdefault(name, []).append(parameters)
        return found

    def _callables_with_remedy(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the name and the positional parameters of what takes a ``remedy``.

        Methods have a name that begins with a dot.
        """
        for node in ast.walk(self.tree):
            if is_function(node):
                names = [argument.arg for argument in node.args.args]
                is_method = names[:1] == ["self"]
                if "remedy" in names:
                    yield f".{node.name}" if is_method else node.name, names[is_method:]
            elif isinstance(node, ast.ClassDef):
                fields = [
                    item.target.id
                    for item in node.body
                    if isinstance(item, ast.AnnAssign)
                    and isinstance(item.target, ast.Name)
                    and "ClassVar" not in ast.unparse(item.annotation)
                ]
                if "remedy" in fields:
                    yield node.name, fields

    def messages(self, signatures: Mapping[str, list[list[str]]]) -> Iterator[Message]:
        """Yield the messages of this module."""
        pieces = {
            value
            for node in ast.walk(self.tree)
            if isinstance(node, ast.JoinedStr)
            for value in node.values
        }
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield from self._called(node, signatures)
            elif isinstance(node, ast.ClassDef):
                yield from self._declared(node)
            elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
                yield from self._yielded(node.value)
            elif isinstance(node, ast.Assign) and _unpacks_remedy(node):
                yield from self._unpacked(node.value)
            elif isinstance(node, ast.Constant | ast.JoinedStr) and node not in pieces:
                yield from self._advice(node)

    def _called(
        self, call: ast.Call, signatures: Mapping[str, list[list[str]]]
    ) -> Iterator[Message]:
        name = called_name(call)
        arguments = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        key = f".{name}" if isinstance(call.func, ast.Attribute) else name
        is_private = name.startswith("_")  # other modules may have the same name
        for parameters in (self.signatures if is_private else signatures).get(key, []):
            if "remedy" not in arguments and len(call.args) <= parameters.index("remedy"):
                continue
            arguments = dict(zip(parameters, call.args, strict=False)) | arguments
        if "remedy" not in arguments:
            return
        problem = next((arguments[key] for key in _PROBLEM_NAMES if key in arguments), None)
        if problem is None and call.args:
            problem = call.args[-1] if name in {"problem", "_problem"} else call.args[0]
        whats = ["…"] if problem is None else self.problem_texts(problem, call)
        remedies = self.texts(arguments["remedy"], call)
        if not remedies and not _comes_from_elsewhere(arguments["remedy"]):
            raise UnknownRemedyError(f"{self.name}: {ast.unparse(arguments['remedy'])}")
        yield from self._pairs(call, whats, remedies)

    def _declared(self, node: ast.ClassDef) -> Iterator[Message]:
        """Yield the message of a capability or a format, whose class declares it."""
        values = {
            target_name(item): item.value
            for item in node.body
            if isinstance(item, ast.AnnAssign | ast.Assign) and item.value is not None
        }
        if "remedy" in values and "label" in values:
            for label in self.texts(values["label"], node):
                what = f"a pass needs {label}, which the model lacks"
                yield from self._pairs(node, [what], self.texts(values["remedy"], node))
        elif "default_remedy" in values:
            title = values.get("title", values.get("summary"))
            titles = [] if title is None else self.texts(title, node)
            whats = [f"no pass reads {text}" for text in titles] or ["no pass reads the model"]
            yield from self._pairs(node, whats, self.texts(values["default_remedy"], node))

    def _yielded(self, pair: ast.Tuple) -> Iterator[Message]:
        """Yield the message of a pair of a problem and its remedy."""
        names = [ast.unparse(item) for item in pair.elts]
        if len(names) == 2 and "remedy" in names[1]:
            whats = self.problem_texts(pair.elts[0], pair)
            yield from self._pairs(pair, whats, self.texts(pair.elts[1], pair))

    def _unpacked(self, value: ast.expr) -> Iterator[Message]:
        """Yield the messages of pairs that ``what, remedy = …`` takes from this module.

        The pairs are in a mapping (``KNOWN[number]``), or are returned by a function.
        """
        source: ast.AST | None = None
        if isinstance(value, ast.Call):
            source = self.functions.get(called_name(value))
        elif isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name):
            source = self.constants.get(value.value.id)
        for node in () if source is None else ast.walk(source):
            pair = self.constants.get(node.id) if isinstance(node, ast.Name) else node
            if isinstance(pair, ast.Tuple) and all(map(_is_text, pair.elts)):
                whats = [re.sub(r"{\w+}", "…", text) for text in self.texts(pair.elts[0], pair)]
                yield from self._pairs(pair, whats, self.texts(pair.elts[1], pair))

    def _advice(self, node: ast.expr) -> Iterator[Message]:
        """Yield the message of a check of a config, whose text ends with the remedy."""
        if not _is_check(self.owners.get(node)):
            return
        (text,) = self.problem_texts(node, node)
        if match := _ADVICE.search(text):
            what, remedy = text[: match.start()], text[match.start() :].lstrip(":, ")
            yield Message(self.name, node.lineno, what, remedy.removeprefix("or "))

    def _pairs(self, node: ast.AST, whats: list[str], remedies: list[str]) -> Iterator[Message]:
        for remedy in remedies:
            for what in whats:
                line = getattr(node, "lineno", 0)
                yield Message(self.name, line, _one_line(what), _one_line(remedy))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _unpacks_remedy(node: ast.Assign) -> bool:
    """Return True for ``what, remedy = …``."""
    target = node.targets[0]
    return isinstance(target, ast.Tuple) and [ast.unparse(item) for item in target.elts][1:] == [
        "remedy"
    ]


def _is_check(owner: ast.AST | None) -> bool:
    """Return True for a function that collects the problems of a config."""
    return isinstance(owner, ast.FunctionDef) and (
        "model_validator" in "".join(map(ast.unparse, owner.decorator_list))
        or owner.name.endswith("problems")
    )


def _comes_from_elsewhere(remedy: ast.expr) -> bool:
    """Return True for the remedy of another error, a parameter, or none."""
    text = ast.unparse(remedy)
    return "None" in text or "remedy" in text or isinstance(remedy, ast.Starred)
