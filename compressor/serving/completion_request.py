"""The request of ``/v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from compressor.serving.fields import LARGEST_INTEGER, GenerationFields, Integer, Text

TokenId = Annotated[Integer, Field(ge=0, le=LARGEST_INTEGER)]


class CompletionRequest(GenerationFields):
    """A text to continue."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationFields.refused,
        "suffix": ("",),
        "echo": (False,),
    }

    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    logprobs: Annotated[Integer | None, Field(ge=0, le=20)] = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts of the request, each a text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(token, int) for token in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]
