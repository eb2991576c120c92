"""``autoglm-phone`` as the engine sees it: described without torch, built with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.models.autoglm_phone import arithmetic
from compressor.models.autoglm_phone.config import PhoneConfig
from compressor.models.autoglm_phone.presets import PRESETS
from compressor.models.contract import Family, InputSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


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
        from compressor.models.autoglm_phone.model import AutoGLMPhoneModel

        return AutoGLMPhoneModel(config)

    def losses(self, model: nn.Module, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy with the labels, and the InfoNCE terms where the batch names concepts.

        The auxiliary labels are ``concept`` [B] (what the command asks for, also when absent) and ``cell_concepts``
        [B, cells].
        """
        from compressor.models.autoglm_phone.alignment import contrast, to_prototypes
        from compressor.models.autoglm_phone.model import AutoGLMPhoneModel

        terms = super().losses(model, outputs, batch)
        if "concept" not in batch or "cell_concepts" not in batch or not isinstance(model, AutoGLMPhoneModel):
            return terms
        temperature, prototypes = model.config.temperature, model.concepts
        concept, concepts = batch["concept"], batch["cell_concepts"]
        command, cells = outputs["command"], outputs["cells"]
        terms["contrast"] = contrast(command, cells, concept, concepts, temperature)
        if model.config.concepts:
            terms["command"] = to_prototypes(command, concept, prototypes, temperature)
            terms["cells"] = to_prototypes(cells.flatten(0, 1), concepts.flatten(), prototypes, temperature)
        return terms

    def features(self, config: PhoneConfig) -> tuple[str, ...]:  # noqa: ARG002
        """Command and cells in the shared space, the fused command, and the decoder's answer state."""
        return ("command", "cells", "fused", "answer")

    def slim(self, config: PhoneConfig, **dimensions: Any) -> PhoneConfig:
        """As JSON, so that lists from a pipeline file are taken for tuples."""
        return PhoneConfig.model_validate_json(json.dumps(config.model_dump(mode="json") | dimensions))
