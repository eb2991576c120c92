"""The request of ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from compressor.serving.fields import (
    LARGEST_INTEGER,
    Fields,
    Flag,
    GenerationFields,
    Integer,
    Text,
)


class ImageUrl(Fields):
    """Address of an image; only ``data:`` addresses are read."""

    url: Text
    detail: Text | None = None


class Part(Fields):
    """A part of a message: text or an image."""

    type: Text
    text: Text | None = None
    refusal: Text | None = None
    image_url: ImageUrl | Text | None = None


class CalledFunction(Fields):
    """A function that an earlier answer called."""

    name: Text
    arguments: Text | dict[str, Any] = ""


class Call(Fields):
    """A call in an earlier answer."""

    id: Text | None = None
    type: Text | None = None
    function: CalledFunction
    index: Integer | None = None


class Message(Fields):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    name: Text | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: Text | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    refusal: Text | None = None


class Function(Fields):
    """A function that the model may call."""

    name: Annotated[Text, Field(min_length=1, max_length=256)]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag | None = None


class Tool(Fields):
    """A tool; only functions are supported."""

    type: Literal["function"]
    function: Function


class NamedFunction(Fields):
    """The name of a function that must be called."""

    name: Text


class NamedTool(Fields):
    """The function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(GenerationFields):
    """A conversation to continue."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationFields.refused,
        "functions": ([],),
        "function_call": ("none",),
        "audio": (),
        "modalities": (["text"],),
        "web_search_options": (),
        "documents": ([],),
        "echo": (False,),
    }

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[Integer | None, Field(ge=1, le=LARGEST_INTEGER)] = None
    logprobs: Flag | None = None
    top_logprobs: Annotated[Integer | None, Field(ge=0, le=20)] = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Flag | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: Flag | None = None
    return_reasoning: Flag | None = None
    include_reasoning: Flag | None = None
    reasoning_effort: Text | None = None

    @property
    def token_limit(self) -> int | None:
        """The largest number of tokens of the answer."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens

    @property
    def logprob_count(self) -> int | None:
        """Alternatives to report with each token; None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def template_options(self) -> dict[str, Any]:
        """Variables of the chat template."""
        options = dict(self.chat_template_kwargs or {})
        if self.enable_thinking is not None:
            options["enable_thinking"] = self.enable_thinking
        if self.reasoning_effort is not None:
            options["reasoning_effort"] = self.reasoning_effort
        if self.tools and self.tool_choice != "none":
            options["tools"] = [tool.model_dump(exclude_none=True) for tool in self.tools]
        return options

    @property
    def reasoning_visible(self) -> bool | None:
        """True to return thinking in its own fields, False to leave it out, None to keep it."""
        return self.include_reasoning if self.return_reasoning is None else self.return_reasoning
