"""Checks of a planned model, and the memory that patterns save; no torch."""

from __future__ import annotations

from collections.abc import Iterator

from compressor.data.contract import DataFacts
from compressor.engine.contract import PlanContext
from compressor.errors import RequirementError
from compressor.models.capabilities.attention_heads import AttentionHeads
from compressor.models.facts import ModelFacts
from passes.common.field_problems import FieldProblem, check_no_problems
from passes.sparse_attention.config import SparseAttentionConfig

TOKENS = "input_ids"


def check_planned(
    config: SparseAttentionConfig, parent: ModelFacts, context: PlanContext | None = None
) -> None:
    """Check everything that is known of the parent and of the texts.

    Raises:
        RequirementError: the parent has a pattern already, all of its layers have windows, or
            fields do not fit; the message names every field.
    """
    if parent.attention_pattern:
        raise RequirementError(
            "the parent has an attention pattern already",
            remedy="start from the model before it, and set the `budget` there",
        )
    heads = parent.capability(AttentionHeads)
    problems = [] if context is None else list(_text_problems(config, context))
    if heads is not None:
        if not heads.full_layers:
            raise RequirementError(
                "all layers of the model attend to a sliding window already "
                f"({max(heads.windowed.values())} tokens): there is nothing to leave out",
                remedy="leave `sparse-attention` out",
            )
        problems += _field_problems(config, heads)
    check_no_problems(problems)


def _field_problems(config: SparseAttentionConfig, heads: AttentionHeads) -> Iterator[FieldProblem]:
    if config.context_length > heads.positions:
        yield FieldProblem(
            "context_length",
            f"{config.context_length} tokens, and the model has positions for {heads.positions}",
            f"set `context_length` to at most {heads.positions}",
        )
    budget = config.budget.kv_memory
    least = 1 - most_saved_rows(config, heads) / heads.cached_rows(config.context_length)
    if budget is not None and budget < least:
        yield FieldProblem(
            "budget.kv_memory",
            f"{budget:g} is below sinks + window: with all heads local, {least:.3f} of the keys "
            f"and values of {config.context_length} tokens are left",
            "raise it, or use smaller `windows` or a larger `context_length`",
        )


def _text_problems(config: SparseAttentionConfig, context: PlanContext) -> Iterator[FieldProblem]:
    for field, name in (
        ("calibration.data", config.calibration.data),
        ("verification.data", config.verification.data),
    ):
        facts = context.data.get(name)
        length = None if facts is None else text_length(facts)
        if length is not None and length < config.context_length:
            yield FieldProblem(
                field,
                f"its texts have {length} tokens, and `context_length` is {config.context_length}",
                f"set the data set's `sequence_length` to {config.context_length}, or a smaller "
                "`context_length`",
            )
    facts = context.data.get(config.verification.data)
    names = {entry.name for entry in (facts.inputs or ())} if facts is not None else {TOKENS}
    if names - {TOKENS}:
        yield FieldProblem(
            "verification.data",
            f"it has {', '.join(sorted(names - {TOKENS}))} beside the tokens, and the copy test "
            "needs text alone",
            "name a data set of text",
        )


def text_length(facts: DataFacts) -> int | None:
    """Return the tokens of each sample of a data set; None if it is not known."""
    shapes = [entry.shape for entry in facts.inputs or () if entry.name == TOKENS]
    return shapes[0][0] if shapes and len(shapes[0]) == 1 else None


def most_saved_rows(config: SparseAttentionConfig, heads: AttentionHeads) -> int:
    """Return the keys that are saved if all heads have the smallest window."""
    saved = config.context_length - config.sinks - config.windows[0]
    return heads.key_heads * len(heads.full_layers) * saved
