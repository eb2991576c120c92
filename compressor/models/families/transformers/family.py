"""Family ``transformers``: checkpoints of the transformers library."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.layer_kinds import LayerKinds
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.contract import CapabilityTable, Family, StoredArchitecture
from compressor.models.families.transformers import arithmetic
from compressor.models.families.transformers.axes import checkpoint_axes
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.decoder_settings import decoder_settings
from compressor.models.families.transformers.headers import compare_headers
from compressor.models.families.transformers.images import image_inputs
from compressor.models.families.transformers.layouts import TIED_FLAG, decoder_shape
from compressor.models.families.transformers.linear_groups import decoder_blocks
from compressor.models.families.transformers.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from compressor.models.checkpoint.weight_files import WeightFiles


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
        from compressor.models.families.transformers.modules import build_module

        return build_module(config.tree)

    def compare_headers(
        self, config: CheckpointConfig, weights: WeightFiles
    ) -> StoredArchitecture[CheckpointConfig]:
        """Compare names and shapes of the tensors; tied weights are tied if they are equal."""
        tree = config.tree
        comparison = compare_headers(tree, weights)
        if decoder_shape(tree).tied != comparison.tied:
            text = json.dumps({**tree, TIED_FLAG: comparison.tied})
            config = CheckpointConfig.model_validate_json(text)
        return StoredArchitecture(
            config, comparison.stored_names, comparison.problems, comparison.notes
        )

    def load(self, config: CheckpointConfig, folder: Path) -> nn.Module:
        """Load by the names and rules of ``from_pretrained``; what does not fit is an error."""
        from compressor.models.families.transformers.checkpoint import Checkpoint

        return Checkpoint(folder, config.tree).load_all()

    def save(
        self,
        module: nn.Module,
        config: CheckpointConfig,
        folder: Path,
        companions: Path | None = None,
    ) -> None:
        """Save through ``save_pretrained``, in the dtype of config.json.

        Tokenizer, processor and licence are copied from ``companions``.
        """
        from compressor.models.families.transformers.modules import save_checkpoint

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
        context_length=decoder_settings(tree).positions,
        layers=decoder.layers,
        key_heads=decoder.key_heads,
        head_width=decoder.head_width,
        image_inputs=image_inputs(tree),
    )
