"""``transformers``: checkpoints as the library writes them, in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compressor.models.contract import Family, InputSpec
from compressor.models.families.transformers import arithmetic
from compressor.models.families.transformers.axes import checkpoint_axes
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.images import image_inputs
from compressor.models.families.transformers.layouts import decoder_of
from compressor.models.families.transformers.linears import blocks_of
from compressor.models.families.transformers.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from compressor.models.capabilities.axes import Axis
    from compressor.models.capabilities.linear_groups import Block


class Transformers(Family[CheckpointConfig]):
    """Language models of Hugging Face transformers.

    Llama, Mistral, Qwen2, Qwen3, Gemma 3, GLM-4, and ``glm4v`` with its vision tower.
    `model: {path: …}` is a folder that `save_pretrained` wrote; what comes out is one that `from_pretrained` loads. Arithmetic is
    that of one token. The presets are small random models, to try a pipeline on.
    """

    name = "transformers"
    Config = CheckpointConfig
    presets: ClassVar[Mapping[str, CheckpointConfig]] = PRESETS
    unit = "token"

    def inputs(self, config: CheckpointConfig) -> tuple[InputSpec, ...]:
        """Windows of tokens; of a vision-language model also what its processor makes of images, sample by sample."""
        tokens = InputSpec(
            "input_ids", "int64", ("batch", "tokens"), decoder_of(config.tree).vocabulary
        )
        return (tokens, *image_inputs(config.tree))

    def outputs(self, config: CheckpointConfig) -> tuple[str, ...]:  # noqa: ARG002
        """The scores of each next token, [B, T, vocabulary]."""
        return ("logits",)

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

    def axes(self, config: CheckpointConfig) -> tuple[Axis, ...]:
        """Layers, heads, inner widths and the hidden width."""
        return tuple(checkpoint_axes(config.tree))

    def linear_blocks(self, config: CheckpointConfig) -> tuple[Block, ...]:
        """The decoder's layers; a vision tower is rounded to the nearest, if at all."""
        return blocks_of(config.tree)
