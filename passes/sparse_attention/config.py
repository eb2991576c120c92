"""Config of the ``sparse-attention`` pass; planning imports it, so it imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from compressor.config.record import DataName, Record
from compressor.engine.contract import PassConfig
from passes.common.field_problems import is_set, raise_problems

Count = Annotated[int, Field(ge=1)]


class CalibrationTexts(Record):
    """Texts on which the loss of each head is measured."""

    data: DataName = "calibration"
    """Data set under `data:`, whose samples have at least `context_length` tokens; of longer ones
    without images, the first count. Labels are not used."""
    num_samples: Count = 4
    """Number of samples, one in memory at a time. The set is divided into that many equal
    stretches, and one sample is drawn at random from each."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed with which the samples are drawn."""


class VerificationTexts(Record):
    """Held-back texts on which the gates are checked."""

    data: DataName = "validation"
    """Data set under `data:`, of text alone. Use none of the calibration's texts."""
    num_samples: Count = 4
    """Number of samples, drawn as those of the calibration."""
    copied_tokens: Annotated[int, Field(ge=8)] = 160
    """Length of the passage from the start of a text that is repeated at its end. The loss of its
    last four fifths is the copy loss."""


class Budget(Record):
    """What the pattern may keep, or what it may cost; one of the two."""

    kv_memory: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the keys and values of `context_length` tokens that is kept at most. The pattern is
    the best one by the measured losses; if it does not pass the gates, the step fails."""
    kl: Annotated[float, Field(gt=0)] | None = None
    """KL divergence from the parent at most, in nats, as the gate `max_kl` counts it. The pattern
    is the one that keeps the least memory and passes both gates."""

    @model_validator(mode="after")
    def _check_one(self) -> Budget:
        if (self.kv_memory is None) == (self.kl is None):
            raise ValueError("set `kv_memory` or `kl`, and not both")
        return self


class BlockGlobal(Record):
    """Blocks and a global stride in all heads: O(n√n) pairs for a block and a stride of √n."""

    block: Count = 16
    """Tokens of a block; a query sees its own block."""
    stride: Count = 64
    """Every so many tokens, a key is seen by all later queries, and a query sees all keys."""
    sinks: Annotated[int, Field(ge=0)] = 0
    """First tokens that every query sees."""
    preceding: bool = False
    """Let a query see the block before its own too."""


class Dynamic(Record):
    """The keys with the largest scores, and a window, in all heads; it needs every score."""

    top_k: Count = 64
    """Keys with the largest scores that a query sees."""
    window: Count = 16
    """Tokens before a query that it sees too, itself included."""
    grow_from: Count | None = None
    """Length of the text from which on `top_k` grows in proportion to it. By default it is
    constant."""


class ComparedPattern(Record):
    """A pattern that the report compares; exactly one field."""

    block_global: BlockGlobal | None = None
    """Blocks and a global stride."""
    dynamic: Dynamic | None = None
    """The largest scores and a window."""
    all_local: bool | None = None
    """`true`: sinks and the smallest window in all heads (StreamingLLM)."""

    @model_validator(mode="after")
    def _check_one(self) -> ComparedPattern:
        given = [value for value in (self.block_global, self.dynamic, self.all_local) if value]
        if len(given) != 1:
            raise ValueError("set one of `block_global`, `dynamic` and `all_local: true`")
        return self


class SparseAttentionConfig(PassConfig):
    """Fields of a ``sparse-attention`` step."""

    budget: Budget
    """Memory of keys and values that is kept, or the KL divergence that is allowed."""
    context_length: Annotated[int, Field(ge=2)] = 2048
    """Tokens of the sequences on which everything is measured, and for which memory is counted."""
    sinks: Annotated[int, Field(ge=0)] = 4
    """First tokens of a sequence that local heads see. Most models need some: attention that has
    nothing to attend to rests there."""
    windows: Annotated[tuple[Count, ...], Field(min_length=1)] = (256,)
    """Windows from which that of each layer's local heads is chosen, in tokens."""
    calibration: CalibrationTexts = CalibrationTexts()
    """Texts on which the loss of each head and window is measured."""
    verification: VerificationTexts = VerificationTexts()
    """Held-back texts for both gates."""
    max_kl: Annotated[float, Field(gt=0)] = 0.05
    """Gate: largest KL divergence from the parent in nats, as the mean over any of the ranges of
    positions in the report. `budget.kl` replaces it."""
    max_copy_loss: Annotated[float, Field(gt=0)] = 0.1
    """Gate: largest increase of the loss in nats per token of a passage that repeats one from far
    back. Windows in all heads lower the perplexity little, and fail to copy."""
    compare: tuple[ComparedPattern, ...] = ()
    """Patterns to measure on the held-back texts beside the chosen one, for the report alone:
    `{block_global: {block: 16, stride: 64}}`, `{dynamic: {top_k: 64, window: 16}}` or
    `{all_local: true}`."""

    @model_validator(mode="after")
    def _check_fields(self) -> SparseAttentionConfig:
        problems = []
        if list(self.windows) != sorted({*self.windows}):
            problems.append("`windows` are to be ascending, none of them twice")
        if self.budget.kl is not None and is_set(self, "max_kl"):
            problems.append("`max_kl` has no effect with `budget.kl`, which replaces it")
        longest = self.sinks + max(self.windows)
        if longest >= self.context_length:
            problems.append(
                f"`sinks` + the largest of `windows` is {longest}, and `context_length` "
                f"{self.context_length}: nothing would be left out; use smaller windows, or longer "
                "texts"
            )
        if self.calibration.data == self.verification.data:
            problems.append(
                f"`calibration.data` and `verification.data` are both {self.verification.data!r}: "
                "hold texts back for the verification"
            )
        if 2 * self.verification.copied_tokens > self.context_length:
            problems.append(
                "`verification.copied_tokens` is more than half of `context_length`: the passage "
                "would not be repeated from far back"
            )
        raise_problems(problems)
        return self

    @property
    def kl_limit(self) -> float:
        """Limit of the KL gate."""
        return self.max_kl if self.budget.kl is None else self.budget.kl
