"""Python files of the user's: collected with what they import, and imported from their text.

A model's files are kept as text in its config.json, so that a model folder is complete. They are
imported under a name of their own for each version of their text: two versions of a model, such as
teacher and student, do not meet.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from compressor.artifacts.fingerprint import canonical_json, digest_json
from compressor.config.permission import require_code_allowed
from compressor.errors import ModelError
from compressor.foreign_files.limits import SOURCE_TEXT
from compressor.foreign_files.opening import read_text

_PACKAGE = "autoglm_user_code"
_INIT = "__init__.py"
_NAMES, _LEVEL = 2, 3
"""Positions of the names to import, and of the level, among the context of an import."""


def split_target(python: str) -> tuple[str, str]:
    """Return file and function of ``my_model.py:build``.

    Raises:
        ModelError: it has another form.
    """
    file, colon, function = python.rpartition(":")
    if not colon or not file.endswith(".py") or not function.isidentifier():
        raise ModelError(
            f"{python!r} names no function in a Python file",
            remedy="write file and function, or class: `my_model.py:build`",
        )
    return file, function


def collect_code(file: Path) -> tuple[str, dict[str, str]]:
    """Return the path of a file in its code, and the text of all files that belong to it.

    They are the file and, followed from import to import, the modules and packages beside it.
    Nothing is imported.

    Raises:
        ModelError: a file is missing, is not Python, or has a syntax error.
    """
    if not file.is_file():
        raise ModelError(f"{file} does not exist", remedy="name a Python file")
    root = file.parent
    while (root / _INIT).is_file():  # relative imports may lead up to the outermost package
        root = root.parent
    code: dict[str, str] = {}
    waiting = [file.relative_to(root).as_posix()]
    while waiting:
        name = waiting.pop()
        if name not in code:
            code[name] = _read(root / name)
            waiting += _imported_files(root, name, code[name])
            waiting += [init for init in _package_files(name) if (root / init).is_file()]
    return file.relative_to(root).as_posix(), dict(sorted(code.items()))


def call_function(code: Mapping[str, str], python: str, arguments: Mapping[str, Any]) -> Any:
    """Import the file of ``my_model.py:build`` from its text, and return what the function does.

    What the code prints goes to standard error, since standard output may be JSON. The working
    directory stays.

    Raises:
        UsageError: code is not allowed.
        ModelError: the file cannot be imported, has no such function, or the function fails.
    """
    require_code_allowed(python)
    file, function = split_target(python)
    if file not in code:
        raise ModelError(
            f"{file} is not among the Python files of the model: {', '.join(code)}",
            remedy="import it in one of them, or start a model from it",
        )
    try:
        with _undisturbed():
            module = _import(canonical_json(dict(code)), _module_name(file))
    except (Exception, SystemExit) as error:  # the code may raise anything
        raise ModelError(f"{file} cannot be imported: {describe_error(error)}") from error
    if not callable(target := getattr(module, function, None)):
        known = [name for name, value in vars(module).items() if _is_own(module, name, value)]
        raise ModelError(
            f"{file} has no function or class {function!r}",
            remedy=f"it has {', '.join(known) or 'none'}",
        )
    try:
        with _undisturbed():
            return target(**arguments)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{python} failed: {describe_error(error)}", remedy=_remedy(error)
        ) from error


def _remedy(error: BaseException) -> str | None:
    if "CUDA" not in str(error):
        return None
    return "build the module on the CPU, without `.cuda()`: passes move it to their device"


def describe_error(error: BaseException) -> str:
    """Return type and message of an error, with the line of the user's code that raised it."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(f"<{_PACKAGE}")
    ]
    if not frames:
        return text
    return f"{text} ({frames[-1].filename.partition('>')[2]}, line {frames[-1].lineno})"


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep standard output and the working directory as they are."""
    folder = Path.cwd()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.chdir(folder)


def _read(path: Path) -> str:
    """Return the text of a Python file."""
    text = read_text(path, SOURCE_TEXT, ModelError)
    try:
        ast.parse(text, path.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ModelError(f"{path}{line}: is not valid Python: {error}") from error
    return text


def _imported_files(root: Path, name: str, text: str) -> Iterator[str]:
    """Yield the files below a folder that a file may import."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module_files(root, root, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            start = (root / name).parents[node.level - 1] if node.level else root
            parts = node.module.split(".") if node.module else []
            for alias in node.names:
                yield from _module_files(root, start, [*parts, alias.name])


def _module_files(root: Path, start: Path, parts: list[str]) -> Iterator[str]:
    """Yield the files of a dotted name; the last part may be a name in a module."""
    folder = start
    for part in parts:
        for candidate in (folder / f"{part}.py", folder / part / _INIT):
            if candidate.is_file():
                yield candidate.relative_to(root).as_posix()
        folder = folder / part


def _package_files(name: str) -> Iterator[str]:
    """Yield the ``__init__.py`` files of the packages that a file is in."""
    for folder in PurePosixPath(name).parents:
        if folder != PurePosixPath():
            yield (folder / _INIT).as_posix()


def _module_name(file: str) -> str:
    path = PurePosixPath(file)
    parts = path.parent.parts if path.name == _INIT else path.with_suffix("").parts
    return ".".join(parts)


def _is_own(module: ModuleType, name: str, value: Any) -> bool:
    is_public = callable(value) and not name.startswith("_")
    return is_public and getattr(value, "__module__", None) == module.__name__


@cache
def _import(code: str, name: str) -> ModuleType:
    """Import a module of a version of code, given as canonical JSON."""
    finder = _CodeFinder(json.loads(code))
    if finder.prefix not in sys.modules:
        package = ModuleType(finder.prefix)
        package.__path__ = []
        sys.modules[finder.prefix] = package
        sys.meta_path.append(finder)
    return importlib.import_module(f"{finder.prefix}.{name}")


class _CodeFinder(MetaPathFinder, SourceLoader):  # type: ignore[misc]
    """Finds and loads the modules of one version of code, below a package of their own."""

    def __init__(self, code: Mapping[str, str]) -> None:
        self.prefix = f"{_PACKAGE}_{digest_json(dict(code))[:12]}"
        inits = {init for file in code for init in _package_files(file)}
        self._files = dict.fromkeys(inits, "") | dict(code)
        self._modules = {_module_name(file): file for file in self._files}
        self._top_level = {name.partition(".")[0] for name in self._modules}

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module below the package."""
        del path, target
        name = fullname.removeprefix(f"{self.prefix}.")
        if name == fullname or name not in self._modules:
            return None
        is_package = PurePosixPath(self._modules[name]).name == _INIT
        return importlib.util.spec_from_loader(fullname, self, is_package=is_package)

    def get_filename(self, fullname: str) -> str:
        """Return the name of a module's file for tracebacks."""
        return f"<{self.prefix}>{self._modules[fullname.removeprefix(f'{self.prefix}.')]}"

    def get_data(self, path: str | bytes) -> bytes:
        """Return the text of a file."""
        return self._files[str(path).partition(">")[2]].encode()

    def exec_module(self, module: ModuleType) -> None:
        """Execute a module; its absolute imports find the files beside it first."""
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)

    def _import(self, name: str, *context: Any, **others: Any) -> ModuleType:
        """Import as the statement does, with the files of the code before installed packages.

        Args:
            name: the module.
            context: globals, locals, names to import and level, as of ``builtins.__import__``.
            others: the same by keyword.
        """
        names = others.get("fromlist", context[2] if len(context) > _NAMES else ())
        level = others.get("level", context[3] if len(context) > _LEVEL else 0)
        if level or name.partition(".")[0] not in self._top_level:
            return builtins.__import__(name, *context, **others)
        module = builtins.__import__(f"{self.prefix}.{name}", fromlist=names)
        return module if names else getattr(module, name.partition(".")[0])
