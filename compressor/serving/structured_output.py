"""Grammars for what a request demands of the form of its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from compressor.errors import UsageError
from compressor.generation.grammar import (
    grammar_from_choices,
    grammar_from_json_schema,
    grammar_from_lark,
    grammar_from_regex,
)
from compressor.serving.api_errors import bad_request, unsupported
from compressor.serving.chat_request import ChatRequest, NamedTool, Tool
from compressor.serving.fields import GenerationFields, ResponseFormat, StructuredOutputs
from compressor.serving.limits import ServerLimits

_COMPILERS: dict[str, Callable[[Any], str]] = {
    "regex": grammar_from_regex,
    "lark": grammar_from_lark,
    "choice": grammar_from_choices,
}


def requested_grammar(request: GenerationFields, limits: ServerLimits) -> str | None:
    """Return the serialized grammar that the answer to a request follows, or None.

    Raises:
        ApiError: 400, which names the field: it is no valid schema or grammar, it is too large, or
            there are several.
    """
    grammars = dict(_grammars(request))
    if isinstance(request, ChatRequest) and (schema := _tool_schema(request)) is not None:
        grammars["tool_choice"] = ("json", schema)
    if len(grammars) > 1:
        names = ", ".join(grammars)
        raise bad_request(f"{names}: an answer follows only one of them", next(iter(grammars)))
    for name, (kind, source) in grammars.items():
        size = len(source if isinstance(source, str) else json.dumps(source))
        if size > limits.max_grammar_bytes:
            raise bad_request(f"{name}: larger than {limits.max_grammar_bytes} bytes", name)
        return _compiled(kind, source, name)
    return None


def _grammars(request: GenerationFields) -> Sequence[tuple[str, tuple[str, Any]]]:
    """Return kind and source of every grammar in a request, by field."""
    found: list[tuple[str, tuple[str, Any]]] = []
    if request.response_format is not None:
        schema = _response_schema(request.response_format)
        if schema is not None:
            found.append(("response_format", ("json", schema)))
    guided = StructuredOutputs(
        json=request.guided_json,
        regex=request.guided_regex,
        choice=request.guided_choice,
        grammar=request.guided_grammar,
    )
    for prefix, options in (
        ("guided_", guided),
        ("structured_outputs.", request.structured_outputs),
    ):
        if options is None:
            continue
        if options.json_ is not None:
            found.append((f"{prefix}json", ("json", options.json_)))
        if options.regex is not None:
            found.append((f"{prefix}regex", ("regex", options.regex)))
        if options.choice is not None:
            found.append((f"{prefix}choice", ("choice", options.choice)))
        if options.grammar is not None:
            found.append((f"{prefix}grammar", ("lark", options.grammar)))
    return found


def _response_schema(format_: ResponseFormat) -> Any | None:
    """Return the JSON schema that ``response_format`` demands; None for text."""
    if format_.type == "text":
        return None
    if format_.type == "json_object":
        return {"type": "object"}
    if format_.type != "json_schema":
        raise unsupported(
            "response_format.type",
            f"response_format.type: {format_.type[:40]!r} is not supported: use text, json_object "
            "or json_schema",
        )
    if format_.json_schema is None or format_.json_schema.schema_ is None:
        raise bad_request(
            "response_format.json_schema.schema: missing", "response_format.json_schema"
        )
    return format_.json_schema.schema_


def _tool_schema(request: ChatRequest) -> dict[str, Any] | None:
    """Return the schema of a call where ``tool_choice`` demands one, else None.

    Raises:
        ApiError: 400; there are no tools, or none of the name.
    """
    tools, choice = request.tools or [], request.tool_choice
    if choice in {None, "none", "auto"} if not isinstance(choice, NamedTool) else False:
        return None
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    if not tools:
        wanted = choice.function.name if isinstance(choice, NamedTool) else "a call"
        raise bad_request(f"tool_choice: {wanted!r} is not among the tools", "tool_choice")
    calls = [_call_schema(tool) for tool in tools]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _call_schema(tool: Tool) -> dict[str, Any]:
    parameters = tool.function.parameters or {"type": "object", "properties": {}}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _compiled(kind: str, source: Any, name: str) -> str:
    """Return the grammar of a source.

    Raises:
        ApiError: 400; the source is invalid.
    """
    try:
        if kind == "json":
            schema = json.loads(source) if isinstance(source, str) else source
            return grammar_from_json_schema(schema, name)
        return _COMPILERS[kind](source)
    except (UsageError, ValueError, RecursionError) as error:
        what = error.what if isinstance(error, UsageError) else f"no valid JSON: {error}"
        raise bad_request(what if name in what else f"{name}: {what}", name) from error
