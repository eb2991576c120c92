"""JSON Schema of pipeline.yaml, with every installed pass and data source, for editors."""

from __future__ import annotations

from typing import Any

from compressor.config import discovery
from compressor.engine.plan.config import PipelineConfig, StepHeader


def pipeline_schema() -> dict[str, Any]:
    """Return the schema (JSON Schema, draft 2020-12)."""
    schema = PipelineConfig.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    passes = [_step_schema(name, definitions) for name in discovery.names(discovery.PASSES)]
    sources = [_source_schema(name, definitions) for name in discovery.names(discovery.SOURCES)]
    schema["properties"]["passes"]["items"] = {"oneOf": passes}
    schema["properties"]["data"]["additionalProperties"] = {"oneOf": sources}
    families = discovery.names(discovery.FAMILIES)
    definitions["ModelConfig"]["properties"]["family"]["anyOf"][0]["enum"] = families
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pipeline.yaml",
        **schema,
    }


def _step_schema(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    pass_ = discovery.load(discovery.PASSES, name)
    config = pass_.Config.model_json_schema(by_alias=True)
    definitions.update(config.pop("$defs", {}))
    header = StepHeader.model_json_schema(by_alias=True)["properties"]
    properties = header | {"type": {"const": name, "description": header["type"]["description"]}}
    return {
        "type": "object",
        "description": (type(pass_).__doc__ or "").strip().splitlines()[0],
        "properties": properties | config.get("properties", {}),
        "required": ["type", *config.get("required", [])],
        "additionalProperties": False,
    }


def _source_schema(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = discovery.load(discovery.SOURCES, name).Config.model_json_schema(
        by_alias=True
    )
    definitions.update(schema.pop("$defs", {}))
    schema["properties"]["source"] = {"const": name}
    schema["required"] = ["source", *(key for key in schema.get("required", []) if key != "source")]
    return schema
