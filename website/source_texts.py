"""Read the texts that expressions in a source file may have, without importing it."""

from __future__ import annotations

import ast
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).parents[1]
_CALLS = {"suggestion": "did you mean …?", "join": "…", "dotted": "…"}
"""Function to the text that stands for what it returns."""


class UnknownRemedyError(Exception):
    """A remedy in the source has a form that is not read here."""


class SourceFile:
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
        """Name to definition of all functions and methods."""
        return {node.name: node for node in ast.walk(self.tree) if is_function(node)}

    @cached_property
    def constants(self) -> dict[str, ast.expr]:
        """Name to value of the assignments of the module and of its classes."""
        bodies = [node.body for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)]
        return {
            target_name(item): item.value
            for body in [*bodies, self.tree.body]
            for item in body
            if isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None
        }

    @cached_property
    def owners(self) -> dict[ast.AST, ast.AST]:
        """Each node to the innermost function around it."""
        owners: dict[ast.AST, ast.AST] = {}
        functions = filter(is_function, ast.walk(self.tree))
        for function in functions:  # inner functions come after outer ones
            owners |= dict.fromkeys(ast.walk(function), function)
        return owners

    def problem_texts(self, node: ast.expr, place: ast.AST) -> list[str]:
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
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if name in self.constants:
                return self.texts(self.constants[name], place)
            case ast.Constant(value=None) | ast.Starred() | ast.Attribute():
                return []
            case ast.Call(func=ast.Attribute(value=ast.Name() as name, attr="replace")):
                return self.texts(name, place)
            case ast.Call(func=ast.Attribute(value=ast.Name() as name, attr="get")):
                parts = (name, *node.args[1:])
                return [text for part in parts for text in self.texts(part, place)]
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
                and target_name(item) == name
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
        module = self._module_of(name) if name.isupper() else None
        return [] if module is None else module._named(name, module.tree)

    def _module_of(self, name: str) -> SourceFile | None:
        """Return the module of this project from which a name is imported."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                file = ROOT / f"{node.module.replace('.', '/')}.py"
                if name in {alias.name for alias in node.names} and file.is_file():
                    return SourceFile(file)
        return None

    def _returned(self, call: ast.Call) -> list[str]:
        """Return the texts that a function of this project returns."""
        name = called_name(call)
        if name in _CALLS:
            return [_CALLS[name]]
        function = self.functions.get(name)
        if function is None:
            module = self._module_of(name)
            return [] if module is None or name in self._open else module._returned(call)
        return [
            text
            for item in ast.walk(function)
            if isinstance(item, ast.Return) and item.value is not None
            if self.owners[item] is function
            for text in self.texts(item.value, item)
        ]


def is_function(node: ast.AST) -> TypeGuard[ast.FunctionDef]:
    """Return True for the definition of a function."""
    return isinstance(node, ast.FunctionDef)


def called_name(call: ast.Call) -> str:
    """Return the name of the function or method that is called; empty if it has none."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def target_name(node: ast.Assign | ast.AnnAssign) -> str:
    """Return the name that is assigned to; empty if it is no name."""
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    return target.id if isinstance(target, ast.Name) else ""
