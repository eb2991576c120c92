"""Family ``autoglm-phone``: a screen and a command in, logits over cells out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.feature_taps import FeatureTaps
from compressor.models.capabilities.layer_kinds import LayerKinds
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.capabilities.training_heads import TrainingHeads, main_head
from compressor.models.contract import CapabilityTable, Family
from compressor.models.families.autoglm_phone import arithmetic
from compressor.models.families.autoglm_phone.axes import phone_axes
from compressor.models.families.autoglm_phone.config import PhoneConfig
from compressor.models.families.autoglm_phone.linear_groups import phone_blocks
from compressor.models.families.autoglm_phone.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


class AutoGLMPhone(Family[PhoneConfig]):
    """A phone model: predicts the cell of a screen that a written or spoken command refers to."""

    name = "autoglm-phone"
    Config = PhoneConfig
    presets: ClassVar[Mapping[str, PhoneConfig]] = PRESETS

    def signature(self, config: PhoneConfig) -> Signature:
        """Return screen, tokens and mel frames as inputs, logits over cells and *absent* as output.

        A command is written or spoken: tokens or mel frames are all zeros.
        """
        inputs = (
            InputSpec("screen", "uint8", ("batch", 3, config.screen_size, config.screen_size)),
            InputSpec("tokens", "int64", ("batch", "tokens"), below=config.vocabulary),
            InputSpec("mel", "float32", ("batch", config.mels, "frames")),
        )
        return Signature(inputs, ("logits",))

    def parameters(self, config: PhoneConfig) -> dict[str, int]:
        """Return the parameters by part.

        The tied embedding counts in the text encoder; ``concepts`` are used in training only.
        """
        return {part: cost.parameters for part, cost in arithmetic.parts(config).items()}

    def macs(self, config: PhoneConfig) -> int:
        """Return the MACs of one sample of the usual lengths.

        Both kinds of command are encoded, as in an exported graph.
        """
        return sum(cost.macs for cost in arithmetic.parts(config).values())

    def build(self, config: PhoneConfig) -> nn.Module:
        """Return an ``AutoGLMPhoneModel``."""
        from compressor.models.families.autoglm_phone.model import AutoGLMPhoneModel

        return AutoGLMPhoneModel(config)

    def capabilities(self, config: PhoneConfig) -> CapabilityTable:
        """Return axes, linear groups, training heads and feature taps."""
        return {
            CuttableAxes: lambda: CuttableAxes(tuple(phone_axes(config))),
            LinearGroups: lambda: LinearGroups(tuple(phone_blocks(config))),
            TrainingHeads: lambda: TrainingHeads(_heads),
            FeatureTaps: lambda: FeatureTaps(("command", "cells", "fused", "answer")),
            LayerKinds: lambda: LayerKinds(_has_batch_norms(config), embedding_tables=False),
        }


def _has_batch_norms(config: PhoneConfig) -> bool:
    return config.vision == "mobilenet" or config.speech == "mel-cnn"


def _heads(module: nn.Module, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the answer's logits, and those of the concepts.

    Concepts of commands [B, P] and of cells [S, cells, P] are compared with one prototype each, so
    that the cross-entropy over these logits is InfoNCE (van den Oord et al. 2018). The auxiliary
    labels are ``concept`` [B] (the command's target, also when it is absent) and
    ``cell_concepts`` [S, cells].
    """
    from compressor.models.families.autoglm_phone.model import AutoGLMPhoneModel

    heads = main_head(module, outputs)
    if isinstance(module, AutoGLMPhoneModel) and module.config.concepts:
        heads |= module.concept_logits(outputs)
    return heads
