"""Calls of functions in an answer, in the forms that models are trained to write.

- Hermes (Qwen, Nous): ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``
- GLM-4.5: ``<tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value>…</tool_call>``
- GLM-4: the name on a line of its own, then the arguments as JSON
- Llama 3: ``{"name": …, "parameters": {…}}``, several separated by semicolons
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.serving.reasoning import held_back

BEGIN, END = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function."""

    name: str
    arguments: str
    """A JSON object."""


class ToolCallParser:
    """Separates calls from the text around them, while an answer is generated.

    What may be a call is held back until it is one, or cannot become one any more; then it is
    text.
    """

    def __init__(self, names: Iterable[str], schemas: Mapping[str, Any] | None = None) -> None:
        """Create a parser.

        Args:
            names: names of the functions that may be called.
            schemas: JSON schemas of their parameters, by name.
        """
        self._names, self._schemas = frozenset(names), schemas or {}
        self._pending, self._is_begin = "", True

    def add(self, text: str) -> tuple[str, list[ToolCall]]:
        """Return the text and the calls that a new piece completes."""
        self._pending += text
        if self._is_begin and self._may_be_whole():
            return "", []
        return self._take_marked()

    def end(self) -> tuple[str, list[ToolCall]]:
        """Return what was held back, at the end of the answer."""
        if self._is_begin and (calls := self._whole_calls()):
            self._pending = ""
            return "", calls
        text, calls = self._take_marked()
        call = self._marked_call(self._pending[len(BEGIN) :]) if self._pending else None
        rest, self._pending = self._pending, ""
        return (text, [*calls, call]) if call else (text + rest, calls)

    def _take_marked(self) -> tuple[str, list[ToolCall]]:
        """Return the complete calls between markers, and the text that is certainly none."""
        text, calls = "", []
        while True:
            before, begin, after = self._pending.partition(BEGIN)
            if not begin:
                safe = len(before) - held_back(before, BEGIN)
                text, self._pending = text + before[:safe], before[safe:]
                break
            text, self._pending = text + before, begin + after
            body, end, rest = after.partition(END)
            if not end:
                break
            call = self._marked_call(body)
            if call is None:
                text += begin + body + end
            else:
                calls.append(call)
            self._pending = rest
        if text.strip() or calls:
            self._is_begin = False
        return ("" if calls and not text.strip() else text), calls

    def _may_be_whole(self) -> bool:
        """Return True while the whole answer may be a call without markers."""
        begin = self._pending.lstrip().removeprefix(_PYTHON_TAG).lstrip()
        if begin.startswith("{") or _PYTHON_TAG.startswith(begin):
            return True
        line, newline, rest = begin.partition("\n")
        if newline:
            return line.strip() in self._names and rest.lstrip()[:1] in {"", "{"}
        return any(name.startswith(line.rstrip()) for name in self._names)

    def _whole_calls(self) -> list[ToolCall]:
        """Return the calls of an answer that consists of nothing else."""
        text = self._pending.strip().removeprefix(_PYTHON_TAG).strip()
        name, newline, rest = text.partition("\n")
        if newline and name.strip() in self._names:
            arguments = _json(rest)
            is_call = isinstance(arguments, dict)
            return [_call(name.strip(), arguments)] if is_call else []
        calls: list[ToolCall] = []
        decoder = json.JSONDecoder()
        while text:
            try:
                value, end = decoder.raw_decode(text)
            except (ValueError, RecursionError):
                return []
            call = self._from_object(value)
            if call is None:
                return []
            calls.append(call)
            text = text[end:].lstrip().removeprefix(";").lstrip()
        return calls

    def _marked_call(self, body: str) -> ToolCall | None:
        """Return the call between two markers; None if there is none."""
        value = _json(body)
        if value is not None:
            return self._from_object(value)
        name = re.split(r"\n|<arg_key>", body.strip(), maxsplit=1)[0].strip()
        if name not in self._names:
            return None
        pairs = {key.strip(): self._value(name, key, text) for key, text in _PAIR.findall(body)}
        return _call(name, pairs)

    def _value(self, function: str, key: str, text: str) -> Any:
        """Return an argument that is text where the schema asks for text, else JSON if it is."""
        properties = (self._schemas.get(function) or {}).get("properties") or {}
        field = properties.get(key.strip()) if isinstance(properties, dict) else None
        if isinstance(field, dict) and field.get("type") == "string":
            return text
        value = _json(text)
        return text if value is None else value

    def _from_object(self, value: Any) -> ToolCall | None:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _json(arguments)
        return _call(name, arguments) if isinstance(arguments, dict) else None


def _json(text: str) -> Any:
    """Return a JSON value, or None if the text is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(name: str, arguments: Any) -> ToolCall:
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))
