"""config.json of a transformers checkpoint, validated as far as the program uses it."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, model_validator

from compressor.config.record import Record
from compressor.models.families.transformers.layouts import (
    LAYOUTS,
    SIZES,
    decoder_shape,
    text_config,
)
from compressor.models.quantized.weight_grid import FORMAT_NAMES, QUANTIZATION_CONFIG, is_packed


class CheckpointConfig(Record):
    """The whole file; fields that are not declared here are kept as they are."""

    model_config = ConfigDict(
        frozen=True, extra="allow", strict=True, use_attribute_docstrings=True
    )

    model_type: str
    """Architecture, by transformers' name."""
    architectures: tuple[str, ...] = ()
    """Class of transformers that loads the checkpoint."""

    @property
    def tree(self) -> dict[str, Any]:
        """Content of the file."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _check_support(self) -> Self:
        tree = self.tree
        if self.model_type not in LAYOUTS:
            raise ValueError(f"model_type {self.model_type!r} is not one of {', '.join(LAYOUTS)}")
        if len(self.architectures) != 1:
            raise ValueError(
                f"`architectures` has to name one class, not {len(self.architectures)}"
            )
        if (
            is_packed(tree)
            and (method := tree[QUANTIZATION_CONFIG].get("quant_method")) not in FORMAT_NAMES
        ):
            raise ValueError(
                f"its weights are quantized by {method!r}; supported: {', '.join(FORMAT_NAMES)}"
            )
        _check_sizes(tree)
        _check_heads(tree)
        return self


def _check_sizes(tree: dict[str, Any]) -> None:
    text = text_config(tree)
    prefix = ".".join((*LAYOUTS[tree["model_type"]].text, ""))
    sizes = {name: text.get(name) for name in SIZES}
    if invalid := [
        prefix + name for name, size in sizes.items() if not isinstance(size, int) or size < 1
    ]:
        raise ValueError(f"these are no positive numbers: {', '.join(invalid)}")


def _check_heads(tree: dict[str, Any]) -> None:
    decoder = decoder_shape(tree)
    if decoder.heads % decoder.key_heads:
        raise ValueError(f"{decoder.heads} heads are no multiple of {decoder.key_heads} key heads")
    needs_multiple = decoder.layout.hidden_by_heads or not decoder.layout.head_width_is_free
    if needs_multiple and decoder.hidden % decoder.heads:
        raise ValueError(f"hidden_size {decoder.hidden} is no multiple of {decoder.heads} heads")
