"""Interface of a module: a call by name in, a mapping of tensors out.

The user's module stays what it is, with its own names in the state dict. Only its class becomes a
subclass with another ``forward``.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.models.families.module.config import OutputPath

_LOGITS = "logits"
_OUTPUT = "output"
_MATRIX = 2
Call = Literal["keyword", "position", "mapping"]
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_PLACE = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
_MAPPING_NAME = re.compile(r"(\w+\.)*(dict|Dict|Mapping|MutableMapping|OrderedDict|TypedDict)\b")
"""An annotation that is text."""


def adapt(
    module: nn.Module, inputs: Sequence[str], outputs: Mapping[str, OutputPath], call: Call
) -> nn.Module:
    """Make ``forward`` take the inputs by keyword and return a dict, in place.

    Args:
        module: a module.
        inputs: names of the inputs, in the order of its ``forward``.
        outputs: name of each output and its place in what ``forward`` returns.
        call: how its ``forward`` takes the inputs.
    """
    original, authors_forward = type(module), forward_of(module)
    vars(module).pop("forward", None)
    names = set(inputs)

    def forward(self: nn.Module, *args: Any, **tensors: Any) -> Any:
        """Return the outputs by name; calls of the module's own code get what its author wrote."""
        if args or tensors.keys() != names:
            return authors_forward(self, *args, **tensors)
        returned = invoke(authors_forward, self, tensors, inputs, call)
        choose = pick_trained if self.training else pick
        return {name: choose(returned, path) for name, path in outputs.items()}

    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
            *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in inputs),
        ]
    )
    origin = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    module.__class__ = type(original.__name__, (original,), {**origin, "forward": forward})
    return module


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """Return the function that computes a module: of its class, or another method in its place.

    Raises:
        ModelError: `forward` was replaced by a function that is no method of the module.
    """
    replacement = vars(module).get("forward")
    if replacement is None:
        return type(module).forward
    if getattr(replacement, "__self__", None) is not module:
        raise ModelError(
            "`forward` was replaced on the module by a function, which copies of the module would "
            "share",
            remedy="define it in a class, such as `class Net(Base): def forward(self, x): …`",
        )
    function: Callable[..., Any] = replacement.__func__
    return function


def invoke(
    forward: Any,
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Sequence[str],
    call: Call,
) -> Any:
    """Return what the user's ``forward`` returns for tensors by name."""
    if call == "keyword":
        return forward(module, **tensors)
    if call == "mapping":
        return forward(module, {name: tensors[name] for name in inputs})
    return forward(module, *(tensors[name] for name in inputs))


def call_style(module: nn.Module, inputs: Sequence[str]) -> Call:
    """Return how ``forward`` takes inputs of these names.

    A single parameter takes several inputs as a dict, and one input if it is annotated as a dict.

    Raises:
        ModelError: it has no parameters for them, or has them in another order.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    if _takes_mapping(list(parameters), inputs):
        return "mapping"
    by_name = {parameter.name for parameter in parameters if parameter.kind in _BY_NAME}
    if set(inputs) <= by_name:
        return "keyword"
    kinds = {parameter.kind for parameter in parameters}
    places = [parameter.name for parameter in parameters if parameter.kind in _BY_PLACE]
    fits = len(inputs) <= len(places) or inspect.Parameter.VAR_POSITIONAL in kinds
    named_elsewhere = [
        name
        for index, name in enumerate(inputs)
        if name in by_name and [name] != places[index:][:1]
    ]
    if fits and not named_elsewhere:
        return "position"
    if inspect.Parameter.VAR_KEYWORD in kinds and not places:
        return "keyword"
    raise ModelError(
        f"`forward` takes {', '.join(parameter.name for parameter in parameters) or 'nothing'}; "
        f"`inputs` names {', '.join(inputs)}",
        remedy="name the inputs as the parameters of `forward`, or in their order",
    )


def _takes_mapping(parameters: Sequence[inspect.Parameter], inputs: Sequence[str]) -> bool:
    """Return True if the only parameter without a default takes a dict of the inputs."""
    required = [parameter for parameter in parameters if parameter.default is parameter.empty]
    if len(required) != 1 or required[0].kind not in _BY_PLACE or parameters[0] is not required[0]:
        return False
    annotation = required[0].annotation
    kind = typing.get_origin(annotation) or annotation
    if isinstance(kind, str):  # of `from __future__ import annotations`
        return bool(_MAPPING_NAME.match(kind))
    if isinstance(kind, type) and kind is not inspect.Parameter.empty:
        return issubclass(kind, Mapping)
    return len(parameters) == 1 and len(inputs) > 1


def pick(returned: Any, path: OutputPath) -> Any:
    """Return the part of what ``forward`` returned at a path."""
    for part in path:
        is_field = isinstance(part, str) and not isinstance(returned, Mapping)
        returned = getattr(returned, str(part)) if is_field else returned[part]
    return returned


def pick_trained(returned: Any, path: OutputPath) -> Tensor:
    """Return the part of what ``forward`` returned in training mode at a path of evaluation mode.

    Models with auxiliary heads, such as GoogLeNet, return their outputs in addition, after the one
    that evaluation mode returns alone. They are left out.

    Raises:
        ModelError: training mode returns something else.
    """
    try:
        found = pick(returned, path)
    except (KeyError, IndexError, AttributeError, TypeError):
        found = None
    if not path and not isinstance(found, Tensor):
        found = next((tensor for place, tensor in tensors_in(found) if len(place) == 1), None)
    if not isinstance(found, Tensor):
        place = ".".join(map(str, path)) or "output"
        raise ModelError(
            f"in training mode `forward` returns {type(returned).__name__} without a tensor "
            f"{place!r}, which it returns in evaluation mode",
            remedy="return the same outputs in both modes; others may follow in training mode",
        )
    return found


def tensors_in(returned: Any, path: OutputPath = ()) -> Iterator[tuple[OutputPath, Tensor]]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses, with their paths.

    Fields of named tuples are in paths by name.
    """
    if isinstance(returned, Tensor):
        yield path, returned
    elif isinstance(returned, Mapping):
        for key, value in returned.items():
            yield from tensors_in(value, (*path, key))
    elif isinstance(returned, (tuple, list)):
        for index, value in zip(_parts(returned), returned, strict=True):
            yield from tensors_in(value, (*path, index))
    elif dataclasses.is_dataclass(returned):
        for field in dataclasses.fields(returned):
            yield from tensors_in(getattr(returned, field.name), (*path, field.name))


def _parts(returned: Sequence[Any]) -> Sequence[int | str]:
    """Return the fields of a named tuple, and the positions of any other sequence."""
    fields: Sequence[str] = getattr(returned, "_fields", ())
    return fields or range(len(returned))


def named_outputs(
    returned: Any, wanted: Sequence[str] | Mapping[str, OutputPath] | None
) -> dict[str, OutputPath]:
    """Return the outputs by name, with their places.

    Without names, keys of mappings name the tensors in them, and positions those of tuples
    (``output_0``). A single tensor [B, C] is ``logits``, any other single tensor ``output``.

    Args:
        returned: what ``forward`` returned.
        wanted: names of the tensors in order or, where ``forward`` returns a mapping, its keys; or
            a name for each place; None to name them all.

    Raises:
        ModelError: there are no tensors, or not those that are named.
    """
    tensors = dict(tensors_in(returned))
    if not tensors:
        raise ModelError(
            f"`forward` returns {type(returned).__name__} without tensors",
            remedy="return a tensor, or tensors in a tuple or a dict",
        )
    found = {_name(path, tensors): path for path in tensors}
    if wanted is None:
        return found
    if isinstance(wanted, Mapping):
        named = {name: _with_fields(returned, path) for name, path in wanted.items()}
        return _checked(named, tensors, found)
    if set(wanted) <= found.keys():
        return {name: found[name] for name in wanted}
    if len(wanted) == len(tensors):
        return dict(zip(wanted, tensors, strict=True))
    raise ModelError(
        f"`outputs` names {', '.join(wanted)}; `forward` returns {', '.join(found)}",
        remedy=f"name all {len(tensors)} tensors in their order, or some of those names",
    )


def _with_fields(returned: Any, path: OutputPath) -> OutputPath:
    """Return a path with the name of a named tuple's field in place of its position."""
    if path and isinstance(path[0], int) and isinstance(returned, tuple):
        parts = _parts(returned)
        if path[0] < len(parts):
            return (parts[path[0]], *_with_fields(returned[path[0]], path[1:]))
    return path


def _name(path: OutputPath, tensors: Mapping[OutputPath, Tensor]) -> str:
    if len(tensors) == 1 and not any(isinstance(part, str) for part in path):
        tensor = tensors[path]
        is_matrix = tensor.ndim == _MATRIX and tensor.is_floating_point()
        return _LOGITS if is_matrix else _OUTPUT
    text = "_".join(map(str, path))
    return text if isinstance(path[0], str) else f"{_OUTPUT}_{text}"


def _checked(
    wanted: dict[str, OutputPath],
    tensors: Mapping[OutputPath, Tensor],
    found: Mapping[str, OutputPath],
) -> dict[str, OutputPath]:
    """Return the named places if there are tensors at all of them."""
    places = {
        name: found.get(str(path[0]), path) if path else path for name, path in wanted.items()
    }
    if missing := [name for name, path in places.items() if path not in tensors]:
        raise ModelError(
            f"`outputs`: `forward` returns no tensor for {', '.join(missing)}; it returns "
            f"{', '.join(found)}",
            remedy="give the key or the position of each: `outputs: {logits: 0}`",
        )
    return places
