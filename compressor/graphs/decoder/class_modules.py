"""Modules of a class of transformers, found by the names that they have in the library.

A module that is found is remembered, so that one that the graph would lack is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compressor.graphs.decoder.architecture import Norm
from compressor.graphs.decoder.class_probes import identify_norm

LAYERS = ("layers", "h", "blocks")
_IGNORED = (nn.Dropout, nn.Identity)


class UnknownStructureError(Exception):
    """The class has a part that the graph does not have; the message names it."""


class ModuleReader:
    """Finds modules of one class.

    Attributes:
        known: full names of the modules that have been found.
    """

    def __init__(self) -> None:
        self.known: set[str] = set()

    def optional(self, prefix: str, module: nn.Module, names: Sequence[str]) -> str | None:
        """Return the first name that a module has, and remember it; None if it has none.

        Args:
            prefix: full name of the module.
            module: the module.
            names: of its children.
        """
        name = next((n for n in names if isinstance(getattr(module, n, None), nn.Module)), None)
        if name is not None and not isinstance(getattr(module, name), nn.ModuleList):
            self.known.add(f"{prefix}.{name}" if prefix else name)
        return name

    def child(self, prefix: str, module: nn.Module, names: Sequence[str]) -> str:
        """Return the first name that a module has, and remember it.

        Raises:
            UnknownStructureError: it has none of them.
        """
        name = self.optional(prefix, module, names)
        if name is None:
            raise UnknownStructureError(f"{prefix or 'a model'} without {' or '.join(names)}")
        return name

    def children(
        self, prefix: str, module: nn.Module, groups: Sequence[tuple[str, ...]]
    ) -> tuple[str, ...]:
        """Return the first group of names that a module has all of; none if there is none."""
        for names in groups:
            if all(isinstance(getattr(module, name, None), nn.Module) for name in names):
                self.known |= {f"{prefix}.{name}" for name in names}
                return names
        return ()

    def norm(self, prefix: str, module: nn.Module, names: Sequence[str], place: str = "") -> Norm:
        """Return the norm of one of these names.

        Args:
            prefix: full name of the module that holds it.
            module: that module.
            names: of the norm.
            place: name of the module in its layer, with a dot.

        Raises:
            UnknownStructureError: there is none, or it computes something else.
        """
        name = self.child(prefix, module, names)
        identified = identify_norm(getattr(module, name))
        if identified is None:
            kind = type(getattr(module, name)).__name__
            raise UnknownStructureError(f"norms of the class {kind}")
        kind, epsilon, offset = identified
        return Norm(f"{place}{name}", epsilon, kind, offset)

    def optional_norm(
        self, prefix: str, module: nn.Module, names: Sequence[str], place: str = ""
    ) -> Norm | None:
        """Return the norm of one of these names; None if there is none."""
        if self.optional(prefix, module, names) is None:
            return None
        return self.norm(prefix, module, names, place)

    def has_parameter(self, prefix: str, module: nn.Module, name: str) -> bool:
        """Return True if a module holds a parameter itself, and remember it."""
        if name not in module._parameters:
            return False
        self.known.add(f"{prefix}.{name}")
        return True

    def check_all_known(self, module: nn.Module) -> None:
        """Check that every module without submodules has been found, or computes nothing.

        The same for parameters of modules with submodules.

        Raises:
            UnknownStructureError: some have not.
        """
        parts = [
            name
            for name, part in module.named_modules()
            if name and not list(part.children()) and not isinstance(part, _IGNORED)
        ]
        parts += [
            f"{name}.{key}"
            for name, part in module.named_modules()
            if list(part.children())
            for key, _ in part.named_parameters(recurse=False)
        ]
        unknown = [
            name
            for name in parts
            if not any(name == known or name.startswith(f"{known}.") for known in self.known)
        ]
        if unknown:
            raise UnknownStructureError(f"the modules {', '.join(sorted(unknown)[:4])}")


def decoder_root(module: PreTrainedModel) -> tuple[str, nn.Module]:
    """Return the module that holds the embedding and the layers, with its name.

    Raises:
        UnknownStructureError: the class has no base model.
    """
    name = module.base_model_prefix
    root = getattr(module, name, None)
    if root is None:
        raise UnknownStructureError("a class without a base model")
    if not any(hasattr(root, part) for part in LAYERS) and hasattr(root, "decoder"):
        return f"{name}.decoder", root.decoder
    return name, root


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """Return (outputs, inputs) of a linear layer."""
    weight: Any = linear.weight
    if isinstance(linear, Conv1D):
        return int(weight.shape[1]), int(weight.shape[0])
    return int(weight.shape[0]), int(weight.shape[1])
