"""``transformers``: checkpoints as the library writes them, in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.contract import CapabilityTable, Family
from compressor.models.families.transformers import arithmetic
from compressor.models.families.transformers.axes import checkpoint_axes
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.images import image_inputs
from compressor.models.families.transformers.layouts import decoder_of, text_of
from compressor.models.families.transformers.linears import blocks_of
from compressor.models.families.transformers.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn


class Transformers(Family[CheckpointConfig]):
    """Language models of Hugging Face transformers.

    Llama, Mistral, Qwen2, Qwen3, Gemma 3, GLM-4, and ``glm4v`` with its vision tower.
    `model: {path: …}` is a folder that `save_pretrained` wrote; what comes out is one that `from_pretrained` loads. Arithmetic is
    that of one token. The presets are small random models, to try a pipeline on.
    """

    name = "transformers"
    Config = CheckpointConfig
    presets: ClassVar[Mapping[str, CheckpointConfig]] = PRESETS

    def signature(self, config: CheckpointConfig) -> Signature:
        """Return tokens, and the processor's arrays for images, as inputs; logits of each next
        token [B, T, vocabulary] as output.
        """
        tokens = InputSpec(
            "input_ids", "int64", ("batch", "tokens"), decoder_of(config.tree).vocabulary
        )
        return Signature((tokens, *image_inputs(config.tree)), ("logits",), unit="token")

    def parameters(self, config: CheckpointConfig) -> dict[str, int]:
        """Embedding, layers, norm, head, vision."""
        return arithmetic.parameters(config.tree)

    def macs(self, config: CheckpointConfig) -> int:
        """For one token, without the products of attention itself, which grow with the context."""
        return arithmetic.macs_per_token(config.tree)

    def build(self, config: CheckpointConfig) -> nn.Module:
        """The class that config.json names."""
        from compressor.models.families.transformers.checkpoint import built

        return built(config.tree)

    def load(self, config: CheckpointConfig, folder: Path) -> nn.Module:
        """Through ``from_pretrained``, which may leave out nothing and invent nothing."""
        from compressor.models.families.transformers.checkpoint import loaded

        return loaded(config.tree, folder)

    def save(
        self,
        module: nn.Module,
        config: CheckpointConfig,
        folder: Path,
        companions: Path | None = None,
    ) -> None:
        """Through ``save_pretrained``, in the dtype that config.json names; tokenizer and processor files come along."""
        from compressor.models.families.transformers.checkpoint import saved

        saved(module, config.tree, folder, companions)

    def capabilities(self, config: CheckpointConfig) -> CapabilityTable:
        """Return axes, the linear groups of the decoder layers, and generation.

        A vision tower has no linear groups: its layers are rounded to the nearest, if at all.
        """
        tree = config.tree
        return {
            CuttableAxes: lambda: CuttableAxes(tuple(checkpoint_axes(tree))),
            LinearGroups: lambda: LinearGroups(blocks_of(tree)),
            CachedGeneration: lambda: _generation(tree),
        }


def _generation(tree: Mapping[str, Any]) -> CachedGeneration:
    decoder = decoder_of(tree)
    return CachedGeneration(
        context_length=int(text_of(tree).get("max_position_embeddings", 2048)),
        layers=decoder.layers,
        key_heads=decoder.key_heads,
        head_width=decoder.head_width,
        image_inputs=image_inputs(tree),
    )
