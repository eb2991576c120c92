"""Names, dtypes and shapes of the tensors in a pickle, from its opcodes; nothing is executed.

``pickletools.genops`` splits a pickle into opcodes. The machine below follows them with symbols in
place of objects: where unpickling would import a class, it keeps the class's name; where unpickling
would call it, it keeps the call.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from compressor.runtimes.tensor_listing import ListedTensor

_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_TENSOR_BUILDERS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
_WRAPPERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First object of a file of ``torch.save`` that is not a zip archive."""
_MAX_OPCODES = 20_000_000


@dataclass(slots=True)
class Symbol:
    """A name that unpickling would import."""

    module: str
    name: str


@dataclass(slots=True)
class Call:
    """An object that unpickling would create with a call."""

    function: Any
    arguments: Any
    entries: dict[Any, Any] = field(default_factory=dict)
    """Items and state that are set afterwards."""


class _Mark:
    """The opcode MARK on the stack."""


@dataclass(slots=True)
class PickledObject:
    """The object of one pickle, with symbols and calls in place of what would be executed."""

    value: Any
    imports: tuple[str, ...]
    """Names that unpickling would import, sorted."""

    def tensors(self) -> tuple[ListedTensor, ...]:
        """Return the tensors in nested dictionaries and module states, by dotted name."""
        return tuple(_walk(self.value, "", set()))


def read_object(file: BinaryIO) -> PickledObject:
    """Read the object of a pickle, or of a file of ``torch.save`` from before it wrote zip files.

    Raises:
        ValueError: the content is not a pickle.
    """
    try:
        first = _Machine().run(file)
        if first.value != _LEGACY_MAGIC:
            return first
        for _ in ("protocol version", "system information"):
            _Machine().run(file)
        return _Machine().run(file)
    except (LookupError, TypeError, AttributeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"not a pickle: {error!r}") from error


class _Machine:
    """Stack and memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.imports: set[str] = set()

    def run(self, file: BinaryIO) -> PickledObject:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number > _MAX_OPCODES:
                raise ValueError("too many opcodes")
            if opcode.name != "STOP":
                self._step(opcode.name, argument)
        return PickledObject(self.stack[-1], tuple(sorted(self.imports)))

    def _step(self, name: str, argument: Any) -> None:
        handler: Callable[[Any], None] | None = getattr(self, f"_op_{name.lower()}", None)
        if handler is not None:
            handler(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name not in {"PROTO", "FRAME"}:
            self.stack.append(argument)  # a number or a text

    def _from_mark(self) -> list[Any]:
        """Remove the entries above the last mark, and the mark, and return the entries."""
        index = max(i for i, entry in enumerate(self.stack) if isinstance(entry, _Mark))
        entries = self.stack[index + 1 :]
        del self.stack[index:]
        return entries

    def _op_mark(self, _: Any) -> None:
        self.stack.append(_Mark())

    def _op_pop(self, _: Any) -> None:
        self.stack.pop()

    def _op_pop_mark(self, _: Any) -> None:
        self._from_mark()

    def _op_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_put(self, index: Any) -> None:
        self.memo[int(index)] = self.stack[-1]

    _op_binput = _op_long_binput = _op_put

    def _op_get(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])

    _op_binget = _op_long_binget = _op_get

    def _op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._import(module, name)

    def _op_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._import(str(module), str(name))

    def _import(self, module: str, name: str) -> None:
        self.imports.add(f"{module}.{name}")
        self.stack.append(Symbol(module, name))

    def _op_reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(Call(function, arguments))

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self._op_reduce(None)

    def _op_inst(self, argument: str) -> None:
        arguments = tuple(self._from_mark())
        self._op_global(argument)
        self.stack.append(Call(self.stack.pop(), arguments))

    def _op_obj(self, _: Any) -> None:
        function, *arguments = self._from_mark()
        self.stack.append(Call(function, tuple(arguments)))

    def _op_build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(state, tuple) and len(state) == 2:  # a dictionary and slots
            state = state[0] or state[1]
        if isinstance(target, Call) and isinstance(state, dict):
            target.entries.update(state)

    def _op_binpersid(self, _: Any) -> None:
        self.stack.append(Call(Symbol("", "persistent"), self.stack.pop()))

    def _op_persid(self, argument: Any) -> None:
        self.stack.append(Call(Symbol("", "persistent"), argument))

    def _op_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._from_mark()))

    def _op_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _op_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _op_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _op_list(self, _: Any) -> None:
        self.stack.append(self._from_mark())

    def _op_dict(self, _: Any) -> None:
        entries = self._from_mark()
        self.stack.append(_as_dict(entries))

    def _op_frozenset(self, _: Any) -> None:
        self.stack.append(self._from_mark())

    def _op_append(self, _: Any) -> None:
        entry = self.stack.pop()
        _extend(self.stack[-1], [entry])

    def _op_appends(self, _: Any) -> None:
        entries = self._from_mark()
        _extend(self.stack[-1], entries)

    _op_additems = _op_appends

    def _op_setitem(self, _: Any) -> None:
        entries = self.stack[-2:]
        del self.stack[-2:]
        _update(self.stack[-1], entries)

    def _op_setitems(self, _: Any) -> None:
        entries = self._from_mark()
        _update(self.stack[-1], entries)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}


def _as_dict(entries: list[Any]) -> dict[Any, Any]:
    """Return alternating keys and values as a dictionary; keys that are no constants are lost."""
    pairs = zip(entries[::2], entries[1::2], strict=True)
    return {key: value for key, value in pairs if isinstance(key, (str, int))}


def _extend(target: Any, entries: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(entries)


def _update(target: Any, entries: list[Any]) -> None:
    owner = target.entries if isinstance(target, Call) else target
    if isinstance(owner, dict):
        owner.update(_as_dict(entries))


def _walk(value: Any, name: str, visited: set[int]) -> Iterator[ListedTensor]:
    """Yield the tensors of an object, each container once.

    The containers of a module's state do not count in the names.
    """
    if isinstance(value, Call):
        if (tensor := _tensor(value, name)) is not None:
            yield tensor
            return
        value = value.entries
    if id(value) in visited or not isinstance(value, (dict, list, tuple)):
        return
    visited.add(id(value))
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        is_container = key in {"_parameters", "_buffers", "_modules"}
        inner = name if is_container else f"{name}.{key}" if name else str(key)
        yield from _walk(entry, inner, visited)


def _tensor(call: Call, name: str) -> ListedTensor | None:
    """Return the tensor that a call would build; None for every other call."""
    function, arguments = call.function, call.arguments
    if not isinstance(function, Symbol) or not isinstance(arguments, tuple) or not arguments:
        return None
    if function.name in _WRAPPERS and isinstance(arguments[0], Call):
        return _tensor(arguments[0], name)
    if function.name not in _TENSOR_BUILDERS or len(arguments) < 3:
        return None
    storage, shape = arguments[0], arguments[2]
    if not isinstance(storage, Call) or not isinstance(storage.arguments, tuple):
        return None
    kind = storage.arguments[1] if len(storage.arguments) > 1 else None
    is_shape = isinstance(shape, tuple) and all(isinstance(size, int) for size in shape)
    if not isinstance(kind, Symbol) or not is_shape:
        return None
    dtype = _STORAGE_DTYPES.get(kind.name, kind.name)
    if function.name == "_rebuild_tensor_v3" and isinstance(arguments[-2], Symbol):
        dtype = arguments[-2].name
    return ListedTensor(name, dtype, tuple(shape))
