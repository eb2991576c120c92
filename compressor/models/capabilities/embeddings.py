"""Outputs that hold vectors, whose products are scores of retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.models.capabilities.capability import Capability
from compressor.models.capabilities.signature import Signature

EMBEDDING = "embedding"
_EMBEDS = "_embeds"
_VECTORS = (EMBEDDING, "embeddings", "pooler_output", "last_hidden_state")


@dataclass(frozen=True, slots=True)
class Embeddings(Capability):
    """Outputs with a vector for each sample, or hidden states whose mean is one.

    ``align`` trains them, and retrieval is measured on them.
    """

    label: ClassVar[str] = "embeddings"
    remedy: ClassVar[str] = (
        "start from an encoder whose output is a vector, such as `sentence-encoder`, BERT or CLIP"
    )

    outputs: tuple[str, ...]
    """Names of the outputs, in the order of the model."""

    @property
    def pair(self) -> tuple[str, str] | None:
        """The embeddings of two kinds, such as images and texts; None for an encoder of one."""
        towers = [name for name in self.outputs if name.endswith(_EMBEDS)]
        return (towers[0], towers[1]) if len(towers) == 2 else None


def has_vectors(output: str) -> bool:
    """Return True if an output holds vectors by which passages are retrieved."""
    return output in _VECTORS or output.endswith(_EMBEDS)


def embeddings_from_signature(signature: Signature) -> Embeddings | None:
    """Return the outputs that hold vectors; None without any, or beside `logits`."""
    outputs = tuple(name for name in signature.outputs if has_vectors(name))
    return Embeddings(outputs) if outputs and "logits" not in signature.outputs else None
