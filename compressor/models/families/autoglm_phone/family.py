"""``autoglm-phone`` as the engine sees it: described without torch, built with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compressor.models.contract import Family, InputSpec
from compressor.models.families.autoglm_phone import arithmetic
from compressor.models.families.autoglm_phone.axes import phone_axes
from compressor.models.families.autoglm_phone.config import PhoneConfig
from compressor.models.families.autoglm_phone.linears import phone_blocks
from compressor.models.families.autoglm_phone.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from compressor.models.capabilities.axes import Axis
    from compressor.models.capabilities.linear_groups import Block


class AutoGLMPhone(Family[PhoneConfig]):
    """A phone model that sees a screen of cells and hears or reads a command."""

    name = "autoglm-phone"
    Config = PhoneConfig
    presets: ClassVar[Mapping[str, PhoneConfig]] = PRESETS

    def inputs(self, config: PhoneConfig) -> tuple[InputSpec, ...]:
        """The screen, the written and the spoken command; one of the latter is all zeros."""
        return (
            InputSpec("screen", "uint8", ("batch", 3, config.screen_size, config.screen_size)),
            InputSpec("tokens", "int64", ("batch", "tokens")),
            InputSpec("mel", "float32", ("batch", config.mels, "frames")),
        )

    def outputs(self, config: PhoneConfig) -> tuple[str, ...]:  # noqa: ARG002
        """Only the answer: cells row by row, then absent."""
        return ("logits",)

    def parameters(self, config: PhoneConfig) -> dict[str, int]:
        """By part; the tied embedding counts in the text encoder, prototypes (training only) in concepts."""
        return {part: cost.parameters for part, cost in arithmetic.parts(config).items()}

    def macs(self, config: PhoneConfig) -> int:
        """For one sample of the usual lengths, both kinds of command computed, as an exported graph does."""
        return sum(cost.macs for cost in arithmetic.parts(config).values())

    def build(self, config: PhoneConfig) -> nn.Module:
        """An ``AutoGLMPhoneModel``."""
        from compressor.models.families.autoglm_phone.model import AutoGLMPhoneModel

        return AutoGLMPhoneModel(config)

    def heads(self, model: nn.Module, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The answer; and the concept of each command [B, P] and of each cell [S, cells, P], against one prototype each.

        Commands and cells meet at the same prototypes: cross-entropy over these logits is InfoNCE (van den Oord et al.
        2018). The auxiliary labels are ``concept`` [B] (what the command asks for, also when absent) and ``cell_concepts``
        [S, cells].
        """
        from compressor.models.families.autoglm_phone.model import AutoGLMPhoneModel

        concepts = (
            model.concept_logits(outputs)
            if isinstance(model, AutoGLMPhoneModel) and model.config.concepts
            else {}
        )
        return super().heads(model, outputs) | concepts

    def axes(self, config: PhoneConfig) -> tuple[Axis, ...]:
        """Channels of the encoders, heads and inner widths; see ``axes.py``."""
        return tuple(phone_axes(config))

    def linear_blocks(self, config: PhoneConfig) -> tuple[Block, ...]:
        """Encoders, fusion, text model; see ``linears.py``."""
        return tuple(phone_blocks(config))

    def features(self, config: PhoneConfig) -> tuple[str, ...]:  # noqa: ARG002
        """Command and cells in the shared space, the fused command, and the decoder's answer state."""
        return ("command", "cells", "fused", "answer")
