"""The ``sparse-attention`` pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import (
    DataNeed,
    Estimate,
    Pass,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.models.capabilities.attention_heads import AttentionHeads
from compressor.models.facts import ModelFacts, facts_of
from passes.sparse_attention.config import SparseAttentionConfig
from passes.sparse_attention.planned import check_planned

_BYTES_PER_PARAMETER = 4
_PROCESS_BYTES = 450 << 20
_MEASURING_COST = 1.5
"""Cost of a text whose heads are measured, in forward passes."""
_PATTERNS = 7
"""Patterns that a bisection over a hundred heads tries."""


class SparseAttention(Pass[SparseAttentionConfig]):
    """Find the heads of a decoder that can attend to sinks and a window, and let them.

    On calibration texts, the squared error of each key-value head's part of the attention's output
    is measured, relative to the residual stream, for each window. The end of each text repeats a
    passage from far back, so that heads that copy count. The heads with the smallest sum of
    losses within the budget become local, by an exact solver; no weight changes. This is
    DuoAttention's mix by head (Xiao et al. 2024, arXiv:2410.10819) without its training.

    Two gates are checked on held-back texts: the KL divergence by position, and a copy test, in
    which a passage from far back is repeated. Windows in all heads pass the first more easily
    than the second.

    The result is the model, float or packed, with an `attention_pattern.json`. torch computes with
    the pattern when the model is measured. Passes that would drop it are refused while planning.
    """

    name = "sparse-attention"
    version = 1
    accepts = frozenset({"torch", "packed"})
    produces = "torch"
    keeps_format = True
    keeps_attention_pattern = True  # it refuses a parent with a pattern itself
    Config = SparseAttentionConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "numpy")
    capabilities = (AttentionHeads,)

    def data_needs(self, config: SparseAttentionConfig) -> tuple[DataNeed, ...]:
        """Return the texts of calibration and verification, of which there must be enough."""
        return tuple(
            DataNeed(
                f"{field}.data",
                texts.data,
                min_samples=texts.num_samples,
                min_samples_field=f"{field}.num_samples",
            )
            for field, texts in (
                ("calibration", config.calibration),
                ("verification", config.verification),
            )
        )

    def estimate(
        self, config: SparseAttentionConfig, parent: ModelFacts, context: PlanContext
    ) -> Estimate:
        """Estimate the time from the forward passes; the size stays.

        Raises:
            RequirementError: the model or the texts do not fit the fields; all are named.
        """
        from passes.common.estimates import forward_seconds

        check_planned(config, parent, context)
        model = replace(parent, attention_pattern=True)
        if parent.parameters is None or parent.macs is None:
            return Estimate(model)
        patterns = 2 + len(config.compare) + (_PATTERNS if config.budget.kl is not None else 1)
        texts = (
            _MEASURING_COST * config.calibration.num_samples
            + patterns * config.verification.num_samples
        )
        return Estimate(
            model,
            seconds=forward_seconds(parent.macs * config.context_length, texts),
            peak_memory_bytes=_PROCESS_BYTES + _BYTES_PER_PARAMETER * parent.parameters,
            disk_bytes=parent.size_bytes,
        )

    def requires(
        self, config: SparseAttentionConfig, parent: Artifact, context: PassContext
    ) -> None:
        """Check fields, and that all weights are finite.

        Raises:
            RequirementError: fields do not fit the model.
            NumericalError: weights hold NaN or infinity.
        """
        from compressor.models.checkpoint.finite import check_finite

        check_planned(config, facts_of(parent.model))
        check_finite(parent.model)

    def run(
        self, config: SparseAttentionConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Measure the heads, choose and verify the pattern, and write the model with it.

        Raises:
            GateError: the pattern does not pass the gates.
        """
        from passes.sparse_attention.run import sparse_attention

        return sparse_attention(config, parent, out, context)

    def ensures(
        self, config: SparseAttentionConfig, parent: Artifact, out: Path, context: PassContext
    ) -> None:
        """Check that the model loads with its pattern, and that its weights are finite."""
        from passes.common.requirements import check_saved_model

        check_saved_model(out, context.device)
