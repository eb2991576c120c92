"""Family ``transformers``: checkpoints of the transformers library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.layer_kinds import LayerKinds
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.contract import CapabilityTable, Family
from compressor.models.families.transformers import arithmetic
from compressor.models.families.transformers.axes import checkpoint_axes
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.images import image_inputs
from compressor.models.families.transformers.layouts import decoder_shape, text_config
from compressor.models.families.transformers.linear_groups import decoder_blocks
from compressor.models.families.transformers.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn


class Transformers(Family[CheckpointConfig]):
    """Language models of Hugging Face transformers.

    Supported are Llama, Mistral, Qwen2, Qwen3, Gemma 3, GLM-4, and ``glm4v`` with its vision tower.
    `model: {path: …}` is a folder that `save_pretrained` wrote; outputs are loaded by
    `from_pretrained`. MACs are counted per token. The presets are small random models, for trying
    out pipelines.
    """

    name = "transformers"
    Config = CheckpointConfig
    presets: ClassVar[Mapping[str, CheckpointConfig]] = PRESETS

    def signature(self, config: CheckpointConfig) -> Signature:
        """Return tokens and the processor's arrays for images as inputs, logits as output.

        The logits of each next token are [B, T, vocabulary].
        """
        vocabulary = decoder_shape(config.tree).vocabulary
        tokens = InputSpec("input_ids", "int64", ("batch", "tokens"), below=vocabulary)
        return Signature((tokens, *image_inputs(config.tree)), ("logits",), unit="token")

    def parameters(self, config: CheckpointConfig) -> dict[str, int]:
        """Return the parameters of embedding, layers, norm, head and vision tower."""
        return arithmetic.parameters(config.tree)

    def macs(self, config: CheckpointConfig) -> int:
        """Return the MACs of one token without attention scores, which grow with the context."""
        return arithmetic.macs_per_token(config.tree)

    def build(self, config: CheckpointConfig) -> nn.Module:
        """Return a module of the class that config.json names."""
        from compressor.models.families.transformers.checkpoint import build_module

        return build_module(config.tree)

    def load(self, config: CheckpointConfig, folder: Path) -> nn.Module:
        """Load through ``from_pretrained``; missing and unexpected weights are errors."""
        from compressor.models.families.transformers.checkpoint import load_checkpoint

        return load_checkpoint(config.tree, folder)

    def save(
        self,
        module: nn.Module,
        config: CheckpointConfig,
        folder: Path,
        companions: Path | None = None,
    ) -> None:
        """Save through ``save_pretrained``, in the dtype of config.json.

        The files of tokenizer and processor are copied from ``companions``.
        """
        from compressor.models.families.transformers.checkpoint import save_checkpoint

        save_checkpoint(module, config.tree, folder, companions)

    def capabilities(self, config: CheckpointConfig) -> CapabilityTable:
        """Return axes, the linear groups of the decoder layers, generation, and kinds of layers.

        A vision tower has no linear groups: its layers are rounded to the nearest, if at all.
        """
        tree = config.tree
        return {
            CuttableAxes: lambda: CuttableAxes(tuple(checkpoint_axes(tree))),
            LinearGroups: lambda: LinearGroups(decoder_blocks(tree)),
            CachedGeneration: lambda: _generation(tree),
            LayerKinds: lambda: LayerKinds(False, embedding_tables=not decoder_shape(tree).tied),
        }


def _generation(tree: Mapping[str, Any]) -> CachedGeneration:
    decoder = decoder_shape(tree)
    return CachedGeneration(
        context_length=int(text_config(tree).get("max_position_embeddings", 2048)),
        layers=decoder.layers,
        key_heads=decoder.key_heads,
        head_width=decoder.head_width,
        image_inputs=image_inputs(tree),
    )
