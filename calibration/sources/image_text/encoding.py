"""Conversations through a checkpoint's own processor."""

from __future__ import annotations

from typing import Any

import numpy as np

from calibration.sources.image_text.records import Conversation
from compressor.errors import DataError
from compressor.models.families.transformers.processor import Processor

Array = np.ndarray[Any, Any]


def encoded(processor: Processor, conversation: Conversation) -> dict[str, Array]:
    """The processor's arrays of one conversation, and ``label`` int64 [T]: the tokens that the assistant says last, else -100.

    Raises:
        DataError: an image cannot be read, or the processor does not take the conversation.
    """
    try:
        found = processor.encode(conversation.messages)
        told = (
            processor.encode(conversation.messages[:-1], add_generation_prompt=True)
            if conversation.is_answered
            else None
        )
    except Exception as error:  # of the template, the tokenizer, Pillow
        raise DataError(
            f"{conversation.where}: the processor of {processor.folder} fails: {error}"
        ) from error
    ids_T = found["input_ids"]
    counted_T = found["mm_token_type_ids"] == 0
    if told is not None and np.array_equal(told["input_ids"], ids_T[: len(told["input_ids"])]):
        counted_T[: len(told["input_ids"])] = False
    return {**found, "label": np.where(counted_T, ids_T, -100)}
