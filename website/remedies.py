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
from typing import TypeGuard

ROOT = Path(__file__).parents[1]
PACKAGES = ("compressor", "passes", "calibration")
_PROBLEM_NAMES = ("what", "reason", "text", "problem", "contents")
"""Names of the parameters that hold the problem."""
_ADVICE = re.compile(r": (?:leave|use|set|name|lower|give|add|choose|remove) |, or leave ")
"""An instruction within the text of a ``ValueError``, which pydantic gives no remedy."""
_CALLS = {"suggestion": "did you mean …?", "join": "…", "dotted": "…"}
"""Function to the text that stands for what it returns."""


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """An error message and its remedy."""

    file: str
    """Path of the module, from the root of the repository."""
    line: int
    what: str
    remedy: str


class UnknownRemedyError(Exception):
    """A remedy in the source has a form that is not read here."""


def collect() -> list[Message]:
    """Return all messages with a remedy, in the order of the files.

    Raises:
        UnknownRemedyError: A remedy is written in a form that is not known here.
    """
    files = [file for name in PACKAGES for file in sorted((ROOT / name).rglob("*.py"))]
    return _collect([_Module(file) for file in files])


def read_module(file: Path) -> list[Message]:
    """Return the messages of one file; errors as ``collect``."""
    return _collect([_Module(file)])


def _collect(modules: list[_Module]) -> list[Message]:
    signatures: dict[str, list[list[str]]] = {}
    for module in modules:
        for name, parameters in module.callables_with_remedy():
            signatures.setdefault(name, []).append(parameters)
    found = {message for module in modules for message in module.messages(signatures)}
    return sorted(message for message in found if re.search(r"[a-z]{2}", message.remedy))


class _Module:
    """One source file."""

    def __init__(self, file: Path) -> None:
        self.name = str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file)
        self.tree = ast.parse(file.read_text(encoding="utf-8"))
        self._open: list[str] = []
        """Names whose values are being read."""
        self._only_last = False
        """True while a problem is read: its name has the value that was assigned last."""

    @cached_property
    def functions(self) -> dict[str, ast.FunctionDef]:
        return {node.name: node for node in ast.walk(self.tree) if _is_function(node)}

    @cached_property
    def owners(self) -> dict[ast.AST, ast.AST]:
        """Each node to the innermost function around it."""
        owners: dict[ast.AST, ast.AST] = {}
        functions = filter(_is_function, ast.walk(self.tree))
        for function in functions:  # inner functions come after outer ones
            owners |= dict.fromkeys(ast.walk(function), function)
        return owners

    def callables_with_remedy(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the name and the positional parameters of what takes a ``remedy``.

        Methods have a name that begins with a dot.
        """
        for node in ast.walk(self.tree):
            if _is_function(node):
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
            elif isinstance(node, ast.Constant | ast.JoinedStr) and node not in pieces:
                yield from self._advice(node)

    def _called(
        self, call: ast.Call, signatures: Mapping[str, list[list[str]]]
    ) -> Iterator[Message]:
        name = _called_name(call)
        arguments = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        is_method = isinstance(call.func, ast.Attribute)
        for parameters in signatures.get(f".{name}" if is_method else name, []):
            if "remedy" not in arguments and len(call.args) <= parameters.index("remedy"):
                continue
            arguments = dict(zip(parameters, call.args, strict=False)) | arguments
        if "remedy" not in arguments:
            return
        problem = next((arguments[key] for key in _PROBLEM_NAMES if key in arguments), None)
        if problem is None and call.args:
            problem = call.args[-1] if name in {"problem", "_problem"} else call.args[0]
        whats = ["…"] if problem is None else self._problem_texts(problem, call)
        yield from self._pairs(call, whats, self.texts(arguments["remedy"], call))

    def _declared(self, node: ast.ClassDef) -> Iterator[Message]:
        """Yield the message of a capability or a format, whose class declares it."""
        values = {
            _target_name(item): item.value
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
            whats = self._problem_texts(pair.elts[0], pair)
            yield from self._pairs(pair, whats, self.texts(pair.elts[1], pair))

    def _advice(self, node: ast.expr) -> Iterator[Message]:
        """Yield the message of a check of a config, whose text ends with the remedy."""
        if not _is_check(self.owners.get(node)):
            return
        (text,) = self._problem_texts(node, node)
        if match := _ADVICE.search(text):
            what, remedy = text[: match.start()], text[match.start() :].lstrip(":, ")
            yield Message(self.name, node.lineno, what, remedy.removeprefix("or "))

    def _pairs(self, node: ast.AST, whats: list[str], remedies: list[str]) -> Iterator[Message]:
        for remedy in remedies:
            for what in whats:
                line = getattr(node, "lineno", 0)
                yield Message(self.name, line, _one_line(what), _one_line(remedy))

    def _problem_texts(self, node: ast.expr, place: ast.AST) -> list[str]:
        """Return the texts of a problem; ``…`` if it comes from somewhere else."""
        self._only_last = True
        try:
            return self.texts(node, place) or ["…"]
        except UnknownRemedyError:
            return ["…"]
        finally:
            self._only_last = False

    def texts(self, node: ast.AST, place: ast.AST) -> list[str]:
        """Return the texts that an expression may have; none if it comes from somewhere else."""
        match node:
            case ast.Constant(value=None) | ast.Starred() | ast.Attribute():
                return []
            case ast.Constant(value=str() | int() | float() as value):
                return [str(value)]
            case ast.JoinedStr():
                return [self._formatted(node, place)]
            case ast.IfExp():
                return self.texts(node.body, place) + self.texts(node.orelse, place)
            case ast.BoolOp(op=ast.And()):
                return self.texts(node.values[-1], place)
            case ast.BoolOp():
                return [text for value in node.values for text in self.texts(value, place)]
            case ast.BinOp(op=ast.Add()):
                lefts = self.texts(node.left, place) or ["…"]
                rights = self.texts(node.right, place) or ["…"]
                return [left + right for left in lefts for right in rights]
            case ast.Dict():
                return [text for value in node.values for text in self.texts(value, place)]
            case ast.Subscript():
                return self.texts(node.value, place)
            case ast.Name():
                return self._named(node.id, place)
            case ast.Call():
                return self._returned(node)
        raise UnknownRemedyError(f"{self.name}: {ast.unparse(node)}")

    def _formatted(self, node: ast.JoinedStr, place: ast.AST) -> str:
        """Return a formatted string; constants of the module are filled in."""
        parts = []
        for value in node.values:
            if isinstance(value, ast.Constant):
                parts.append(str(value.value))
                continue
            inner = value.value if isinstance(value, ast.FormattedValue) else None
            name = inner.id if isinstance(inner, ast.Name) else ""
            texts = self._named(name, place) if name.isupper() else []
            parts.append(texts[0] if len(texts) == 1 else "…")
        return "".join(parts)

    def _named(self, name: str, place: ast.AST) -> list[str]:
        """Return the texts that are assigned to a name, in the function or else in the module."""
        if name in self._open:  # assigned from its own former value
            return []
        self._open.append(name)
        try:
            return self._assigned(name, self.owners.get(place), place)
        finally:
            self._open.pop()

    def _assigned(self, name: str, owner: ast.AST | None, place: ast.AST) -> list[str]:
        for scope in filter(None, (owner, self.tree)):
            values = [
                item.value
                for item in ast.walk(scope)
                if isinstance(item, ast.Assign | ast.AnnAssign)
                and _target_name(item) == name
                and item.value is not None
                and (scope is not self.tree or item in self.tree.body)
            ]
            if self._only_last:
                line = getattr(place, "lineno", 0)
                values = [value for value in values if value.lineno <= line] or values
                values = sorted(values, key=lambda value: value.lineno)[-1:]
            if values:
                return [text for value in values for text in self.texts(value, place)]
        return self._imported(name)

    def _imported(self, name: str) -> list[str]:
        """Return the text of a constant of another module."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module and name.isupper():
                file = ROOT / f"{node.module.replace('.', '/')}.py"
                if name in {alias.name for alias in node.names} and file.is_file():
                    module = _Module(file)
                    return module._named(name, module.tree)
        return []

    def _returned(self, call: ast.Call) -> list[str]:
        """Return the texts that a function of the module returns."""
        name = _called_name(call)
        if name in _CALLS:
            return [_CALLS[name]]
        function = self.functions.get(name)
        if function is None:
            return []
        return [
            text
            for item in ast.walk(function)
            if isinstance(item, ast.Return) and item.value is not None
            if self.owners[item] is function
            for text in self.texts(item.value, item)
        ]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_function(node: ast.AST) -> TypeGuard[ast.FunctionDef]:
    return isinstance(node, ast.FunctionDef)


def _is_check(owner: ast.AST | None) -> bool:
    """Return True for a function that collects the problems of a config."""
    return isinstance(owner, ast.FunctionDef) and (
        "model_validator" in "".join(map(ast.unparse, owner.decorator_list))
        or owner.name.endswith("problems")
    )


def _called_name(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _target_name(node: ast.Assign | ast.AnnAssign) -> str:
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    return target.id if isinstance(target, ast.Name) else ""
