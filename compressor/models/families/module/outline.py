"""Functions and classes of a Python file that may build a module, read without running it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compressor.errors import ModelError

_MODULE = re.compile(r"(\w+\.)*\w*Module$|(torch\.)?nn\.[A-Z]\w*$")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.ClassDef | Function


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a function."""

    name: str
    annotation: str = ""
    """Its text; empty without one."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A function or class that builds a module, as far as its text states it."""

    function: str
    arguments: tuple[str, ...] = ()
    """Its parameters without defaults."""
    forward: tuple[Parameter, ...] | None = None
    """Parameters of ``forward`` without defaults; None if it is not in the file, or takes any
    number."""
    optional: tuple[Parameter, ...] = ()
    """Parameters of ``forward`` with defaults."""
    docstring: str = ""
    """Documentation of ``forward`` and of its class."""


def outline(text: str, file: str, function: str | None) -> Outline:
    """Return the function or class that builds the module of a file.

    Args:
        text: the file's text, which is valid Python.
        file: its name, for messages.
        function: the name that the user gave; None to find the only one.

    Raises:
        ModelError: there is no such name, or not exactly one candidate.
    """
    tree = ast.parse(text)
    found = {node.name: node for node in tree.body if isinstance(node, Definition)}
    modules = _module_classes(found)
    candidates = _candidates(found, modules)
    if function is None:
        if len(candidates) != 1:
            raise _ambiguous(file, candidates)
        function = candidates[0]
    elif function not in {*found, *_imported(tree)}:
        raise ModelError(
            f"{file} has no function or class {function!r}",
            remedy=f"name one of {', '.join(candidates or found) or 'its functions'}",
        )
    node = found.get(function)
    built = _built_class(node, modules)
    forward = None if built is None else _forward(built, modules)
    docs = [ast.get_docstring(part) for part in (forward, built) if part is not None]
    return Outline(
        function,
        _required_arguments(node, modules),
        None if forward is None else _parameters(forward),
        () if forward is None else _parameters(forward, optional=True),
        "\n".join(doc for doc in docs if doc),
    )


def _ambiguous(file: str, candidates: Sequence[str]) -> ModelError:
    if not candidates:
        return ModelError(
            f"{file} has no class derived from torch.nn.Module, and no function that returns one",
            remedy=f"name the function that builds the module: {file}:FUNCTION",
        )
    return ModelError(
        f"{file} has several functions and classes that may build the module: "
        f"{', '.join(candidates)}",
        remedy=f"name one of them: {file}:{candidates[-1]}",
    )


def _module_classes(found: Mapping[str, Definition]) -> dict[str, ast.ClassDef]:
    """Return the classes that derive from a module, directly or through others of the file."""
    modules: dict[str, ast.ClassDef] = {}
    for _ in found:  # a base may be defined after a class that is only read here
        for name, node in found.items():
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base) for base in node.bases]
                if any(_MODULE.match(base) or base in modules for base in bases):
                    modules[name] = node
    return modules


def _candidates(
    found: Mapping[str, Definition], modules: Mapping[str, ast.ClassDef]
) -> tuple[str, ...]:
    """Return the candidates that no other candidate uses: `build` before `Net` before `Block`."""
    names = [
        name
        for name, node in found.items()
        if not name.startswith("_")
        and (name in modules or (isinstance(node, ast.FunctionDef) and _builds(node, modules)))
    ]
    used = {name for user in names for name in _names_in(found[user]) - {user}}
    return tuple(name for name in names if name not in used)


def _builds(node: ast.FunctionDef, modules: Mapping[str, ast.ClassDef]) -> bool:
    """Return True for a function that states, or creates and returns, a module."""
    if node.returns is not None:
        text = ast.unparse(node.returns).strip("'\"")
        return bool(_MODULE.match(text)) or text in modules
    returns = [part for part in ast.walk(node) if isinstance(part, ast.Return) and part.value]
    return any(_created(part.value, node, modules) for part in returns)


def _created(
    value: ast.expr | None,
    node: ast.FunctionDef,
    modules: Mapping[str, ast.ClassDef],
    variables: frozenset[str] = frozenset(),
) -> bool:
    """Return True for a call of a module's class, or a variable that is assigned one.

    Args:
        value: the expression.
        node: the function that it is in.
        modules: classes of modules.
        variables: variables that were followed already.
    """
    if isinstance(value, ast.Name):
        if value.id in variables:
            return False
        followed = variables | {value.id}
        return any(
            _created(part.value, node, modules, followed)
            for part in ast.walk(node)
            if isinstance(part, (ast.Assign, ast.AnnAssign)) and value.id in _targets(part)
        )
    if not isinstance(value, ast.Call):
        return False
    text = ast.unparse(value.func)
    if text in modules or _MODULE.match(text):
        return True
    # A method of a module, such as `.eval()` or `.to(device)`, returns the module.
    called = value.func
    return isinstance(called, ast.Attribute) and _created(called.value, node, modules, variables)


def _targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the names that imports and assignments of a file define."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _built_class(
    node: Definition | None, modules: Mapping[str, ast.ClassDef]
) -> ast.ClassDef | None:
    """Return the class of the module: the definition itself, or the only one a function names."""
    if isinstance(node, ast.ClassDef):
        return node
    if node is None:
        return None
    used = [name for name in modules if name in _names_in(node)]
    inner = {name for user in used for name in _names_in(modules[user]) - {user}}
    outer = [name for name in used if name not in inner]
    return modules[outer[0]] if len(outer) == 1 else None


def _method(
    node: ast.ClassDef, name: str, modules: Mapping[str, ast.ClassDef]
) -> ast.FunctionDef | None:
    """Return a method of a class, or of its bases in the file."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == name:
            return part
    others = {key: other for key, other in modules.items() if other is not node}
    bases = [others[base] for base in map(ast.unparse, node.bases) if base in others]
    inherited = (_method(base, name, others) for base in bases)
    return next((method for method in inherited if method is not None), None)


def _forward(node: ast.ClassDef, modules: Mapping[str, ast.ClassDef]) -> ast.FunctionDef | None:
    method = _method(node, "forward", modules)
    return None if method is None or method.args.vararg or method.args.kwarg else method


def _required_arguments(
    node: Definition | None, modules: Mapping[str, ast.ClassDef]
) -> tuple[str, ...]:
    if isinstance(node, ast.ClassDef):
        node = _method(node, "__init__", modules)
        return () if node is None else tuple(entry.name for entry in _parameters(node))
    return () if node is None else tuple(entry.name for entry in _parameters(node, skip=0))


def _parameters(node: Function, skip: int = 1, *, optional: bool = False) -> tuple[Parameter, ...]:
    """Return the parameters without defaults, or those with defaults, without the first ones."""
    positional = [*node.args.posonlyargs, *node.args.args]
    first_default = len(positional) - len(node.args.defaults)
    entries = positional[max(first_default, skip) :] if optional else positional[skip:first_default]
    named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    entries += [entry for entry, default in named if (default is not None) is optional]
    return tuple(
        Parameter(entry.arg, "" if entry.annotation is None else ast.unparse(entry.annotation))
        for entry in entries
    )
