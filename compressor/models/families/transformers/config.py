"""config.json of a transformers checkpoint, as far as this program has to understand it."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, model_validator

from compressor.config.record import Record
from compressor.models.families.transformers.layouts import LAYOUTS, SIZES, decoder_of, text_of
from compressor.models.quantized.description import FORMAT_NAMES, QUANTIZATION_CONFIG, is_packed


class CheckpointConfig(Record):
    """The file as it is: what this program does not read, it hands on."""

    model_config = ConfigDict(
        frozen=True, extra="allow", strict=True, use_attribute_docstrings=True
    )

    model_type: str
    """The architecture, by transformers' name."""
    architectures: tuple[str, ...] = ()
    """The class to load it with."""

    @property
    def tree(self) -> dict[str, Any]:
        """The file's content."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _is_known(self) -> Self:
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
                f"its weights are quantized by {method!r}, which is not read here; {', '.join(FORMAT_NAMES)} are"
            )
        text = text_of(tree)
        where = ".".join((*LAYOUTS[self.model_type].text, ""))
        sizes = {name: text.get(name) for name in SIZES}
        if bad := [name for name, size in sizes.items() if not isinstance(size, int) or size < 1]:
            raise ValueError(
                f"these are no positive numbers: {', '.join(where + name for name in bad)}"
            )
        _check_heads(tree)
        return self


def _check_heads(tree: dict[str, Any]) -> None:
    decoder = decoder_of(tree)
    if decoder.heads % decoder.key_heads:
        raise ValueError(f"{decoder.heads} heads are no multiple of {decoder.key_heads} key heads")
    wanted = decoder.layout.hidden_by_heads or not decoder.layout.head_width_is_free
    if wanted and decoder.hidden % decoder.heads:
        raise ValueError(f"hidden_size {decoder.hidden} is no multiple of {decoder.heads} heads")
