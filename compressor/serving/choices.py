"""One answer of a chat while it is generated: thinking, text and calls."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from compressor.generation.requests import FinishReason, TokenLogprob
from compressor.serving.chat_request import ChatRequest
from compressor.serving.reasoning import ReasoningSplitter
from compressor.serving.tool_calls import ToolCall, ToolCallParser


@dataclass(slots=True)
class Delta:
    """What a new piece of an answer adds."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class Choice:
    """Separates one answer into thinking, text and calls, as the request asks for them."""

    def __init__(self, request: ChatRequest, *, thinks_at_once: bool) -> None:
        """Start an answer.

        Args:
            request: the request.
            thinks_at_once: True if the prompt ends behind an opening tag of thinking.
        """
        visible = request.reasoning_visible
        self._shows_reasoning = bool(visible)
        self._splitter = None if visible is None else ReasoningSplitter(is_open=thinks_at_once)
        self._parser: ToolCallParser | None = None
        if request.tools and request.tool_choice != "none":
            functions = [tool.function for tool in request.tools]
            schemas = {function.name: function.parameters for function in functions}
            self._parser = ToolCallParser(schemas, schemas)
        self._one_call = request.parallel_tool_calls is False
        self._calls = 0
        self.unreported_tokens: list[TokenLogprob] = []
        """Tokens whose log probabilities were not yet reported."""

    def add(self, text: str) -> Delta:
        """Return what a new piece of text adds."""
        reasoning, content = "", text
        if self._splitter is not None:
            reasoning, content = self._splitter.add(text)
        calls: list[ToolCall] = []
        if self._parser is not None and content:
            content, calls = self._parser.add(content)
        return self._delta(reasoning, content, calls)

    def end(self) -> Delta:
        """Return what was held back, at the end of the answer."""
        reasoning, content, calls = "", "", list[ToolCall]()
        if self._splitter is not None:
            reasoning, content = self._splitter.end()
        if self._parser is not None:
            content, calls = self._parser.add(content)
            rest, more = self._parser.end()
            content, calls = content + rest, calls + more
        return self._delta(reasoning, content, calls)

    def finish_reason(self, reason: FinishReason) -> str:
        """Return OpenAI's name of the reason for which the answer ended."""
        if reason is not FinishReason.STOP:
            return "length"
        return "tool_calls" if self._calls else "stop"

    def take_tokens(self) -> list[TokenLogprob]:
        """Return the tokens that were not yet reported."""
        tokens, self.unreported_tokens = self.unreported_tokens, []
        return tokens

    def calls_json(self, calls: list[ToolCall], *, numbered: bool) -> list[dict[str, Any]]:
        """Return calls in OpenAI's form; in streams with their numbers in the answer."""
        first = self._calls - len(calls)
        return [
            {
                **({"index": first + number} if numbered else {}),
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for number, call in enumerate(calls)
        ]

    def _delta(self, reasoning: str, content: str, calls: list[ToolCall]) -> Delta:
        if self._one_call:
            calls = calls[: max(0, 1 - self._calls)]
        self._calls += len(calls)
        return Delta(content, reasoning if self._shows_reasoning else "", calls)
