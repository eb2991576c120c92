"""What a model family promises, so that every pass works on every family.

A family is found through the entry-point group ``autoglm_compress.families``. Importing a family module must not import
torch: a family that builds modules imports them inside its methods.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from compressor.config.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from compressor.models.capabilities.axes import Axis, Field
    from compressor.models.capabilities.linear_groups import Block

F = TypeVar("F", bound=Record)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model.

    ``shape`` holds an int for a fixed dimension and a name for one that varies, as ``("batch", 3, 96, 96)``.
    """

    name: str
    dtype: str
    """A NumPy dtype name: float32, int64, uint8."""
    shape: tuple[int | str, ...]
    below: int | None = None
    """Every value is less, as a token is less than the size of the vocabulary."""
    longest: int | None = None
    """The largest size of a dimension that varies, the batch aside, as a text has no more tokens than there are positions."""
    optional: bool = False
    """Whether the model answers without it, as a vision-language model answers to text alone."""


class Family(ABC, Generic[F]):
    """How models of one architecture are described, built and trained."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Bump when the module of a config may initialise or answer otherwise."""
    Config: ClassVar[type[Record]]
    """The architecture, as saved in config.json."""
    presets: ClassVar[Mapping[str, Record]]
    unit: ClassVar[Literal["sample", "token"]] = "sample"
    """What ``macs`` counts for one of."""

    @abstractmethod
    def inputs(self, config: F) -> tuple[InputSpec, ...]:
        """The inputs, named as the data sets name them, in the order of ``forward``."""

    def required_inputs(self, config: F) -> tuple[InputSpec, ...]:
        """Those without which there is no answer."""
        return tuple(spec for spec in self.inputs(config) if not spec.optional)

    @abstractmethod
    def outputs(self, config: F) -> tuple[str, ...]:
        """The names of the outputs that an exported model has; ``logits`` [B, classes] is the answer.

        A model without classes gives ``embedding`` [B, width] instead.
        """

    @abstractmethod
    def parameters(self, config: F) -> dict[str, int]:
        """Parameters by part (tied weights once), without torch and without allocating anything."""

    @abstractmethod
    def macs(self, config: F) -> int:
        """Multiply-accumulates of one forward pass of one ``unit`` (0 where the family cannot tell)."""

    @abstractmethod
    def build(self, config: F) -> nn.Module:
        """The module, freshly initialised from torch's global generator.

        ``forward(*inputs)`` takes the tensors of ``inputs`` by keyword and returns a dict with at least the tensors of
        ``outputs``; it may add others (features for distillation, embeddings for auxiliary losses).
        """

    def load(self, config: F, folder: Path) -> nn.Module:
        """The module with the weights that ``save`` wrote, with the dtypes of the files; tied weights stay tied.

        Raises:
            ModelError: tensors are missing, too many, or of another shape or kind: all are named.
        """
        from compressor.models.checkpoint.weights import filled

        return filled(self.build(config), folder)

    def save(
        self,
        module: nn.Module,
        config: F,
        folder: Path,
        companions: Path | None = None,  # noqa: ARG002
    ) -> None:
        """Write description and weights; equal weights give equal bytes.

        Args:
            module: of this family.
            config: its architecture.
            folder: where to.
            companions: a model whose other files, such as a tokenizer's, come along where the family has such.

        Raises:
            StorageError: the disk is full, or the folder may not be written.
        """
        from compressor.models.checkpoint.files import write_description
        from compressor.models.checkpoint.weights import save_weights

        save_weights(module, folder)
        write_description(self.name, self.version, config, folder)

    def heads(self, model: nn.Module, outputs: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """What training compares with labels, hard or a teacher's: the name of the label in the batch to logits [..., classes].

        ``label`` is the answer itself; others are auxiliary, and count where the batch, or the teacher, has such labels.
        """
        return {"label": outputs["logits"]}

    def meant(self, inputs: Mapping[str, Tensor]) -> Tensor | None:  # noqa: ARG002
        """Which positions of the inputs are no padding, bool [B, T]; None where all count.

        What a layer says of the others is not looked at where ranges and means are.
        """
        return None

    def features(self, config: F) -> tuple[str, ...]:  # noqa: ARG002
        """Names of ``forward``'s outputs that can be matched in distillation, each [B, dim] or [B, tokens, dim]."""
        return ()

    def axes(self, config: F) -> tuple[Axis, ...]:  # noqa: ARG002
        """What can be cut; nothing where the family does not say."""
        return ()

    def linear_blocks(self, config: F) -> tuple[Block, ...]:  # noqa: ARG002
        """The linear layers that ``awq`` packs, in the order of computing; nothing where the family does not say."""
        return ()

    def resized(self, config: F, fields: Mapping[Field, int | bool | list[Any] | None]) -> F:
        """The config with these fields replaced, each named by its path; an entry of a list goes where None replaces it.

        Raises:
            pydantic.ValidationError: they do not fit together.
        """
        tree = config.model_dump(mode="json")
        gone = [path for path, value in fields.items() if value is None]
        for path, value in fields.items():
            if value is not None:
                _holder(tree, path)[path[-1]] = value
        for path in sorted(
            gone, reverse=True
        ):  # the last first: until then all places are those of the config
            del _holder(tree, path)[path[-1]]
        return type(config).model_validate_json(json.dumps(tree))

    def slim(self, config: F, **dimensions: Any) -> F:
        """A smaller config of the same family (for ``student: {slim: …}``): each keyword replaces a field.

        Raises:
            pydantic.ValidationError: the dimensions do not fit together.
        """
        return type(config).model_validate_json(
            json.dumps(config.model_dump(mode="json") | dimensions)
        )


def _holder(tree: Any, path: Field) -> Any:
    """What the field of a path lies in."""
    for part in path[:-1]:
        tree = tree[part]
    return tree
