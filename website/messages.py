"""The generated part of docs/messages.md: error messages with a remedy, by where they appear."""

from __future__ import annotations

import re
from collections.abc import Iterable

from website.remedies import Message, collect
from website.tables import escaped, table

SECTIONS = {
    "pipeline.yaml": (
        "compressor/config",
        "compressor/engine/plan/class_checks",
        "compressor/engine/plan/code_checks",
        "compressor/engine/plan/gate_problems",
        "compressor/engine/plan/pipeline",
        "compressor/engine/plan/planner",
        "compressor/engine/plan/wiring",
        "passes/common/field_problems",
    ),
    "A model to start from": (
        "compressor/engine/plan/model_starter",
        "compressor/engine/plan/module_source",
        "compressor/engine/plan/module_starter",
        "compressor/engine/plan/source_model",
        "compressor/engine/plan/starter",
        "compressor/runtimes/foreign",
        "compressor/runtimes/formats",
        "compressor/runtimes/torch",
        "compressor/analysis/model_sizes",
    ),
    "Checkpoints": (
        "compressor/models/checkpoint",
        "compressor/models/families/transformers",
        "compressor/models/quantized",
        "compressor/models/consumers",
        "compressor/analysis/consumer_lint",
    ),
    "Modules of your own, timm and torchvision": ("compressor/models/families/module",),
    "Capabilities that a pass needs": ("compressor/models/capabilities",),
    "Data sets": (
        "calibration/sources",
        "compressor/data",
        "compressor/engine/data_checks",
        "compressor/engine/run/checked_data",
        "compressor/models/waveforms",
        "compressor/runtimes/session",
    ),
    "Files of any kind": ("compressor/foreign_files",),
    "Running a pipeline": (
        "compressor/engine/device",
        "compressor/engine/run",
        "compressor/artifacts/causes",
        "compressor/artifacts/files",
        "compressor/errors",
    ),
    "train and distill": ("passes/common", "passes/train", "passes/distill"),
    "align": ("passes/align",),
    "prune": ("passes/prune",),
    "qat (ptq)": ("passes/qat", "calibration/table"),
    "awq (weight-only)": ("passes/awq",),
    "Adapters": (
        "compressor/models/adapters",
        "compressor/runtimes/torch/adapter_format",
        "passes/lora",
    ),
    "sparse-attention": (
        "compressor/engine/plan/capabilities",
        "compressor/models/attention_patterns",
        "passes/sparse_attention",
    ),
    "export-onnx": ("passes/export_onnx", "compressor/graphs"),
    "export-gguf": ("passes/export_gguf", "compressor/runtimes/llamacpp"),
    "optimize-onnx": ("passes/optimize_onnx",),
    "export-ort": ("passes/export_ort",),
    "export-mnn": ("passes/export_mnn", "compressor/runtimes/mnn"),
    "tensorrt and engines": ("passes/tensorrt", "compressor/runtimes/tensorrt"),
    "delta and apply": ("passes/delta", "compressor/runtimes/delta"),
    "Measuring and gates": ("compressor/evaluation", "compressor/engine/gates"),
    "The store, runs, archives and signatures": ("compressor/artifacts",),
    "Generating text": ("compressor/generation", "compressor/runtimes"),
    "Serving models": ("compressor/serving",),
    "Other commands": ("compressor/analysis", "compressor/commands"),
}
"""Heading to the modules whose messages it has; the longest prefix counts."""
_UNNAMED = "*(the message names the file or the field)*"


def messages() -> str:
    """Return a section for each place where a user meets errors."""
    by_section: dict[str, list[Message]] = {section: [] for section in SECTIONS}
    for message in collect():
        by_section[section_of(message)].append(message)
    return "\n\n".join(
        f"## {section}\n\n{table(['Message', 'Remedy'], _rows(found))}"
        for section, found in by_section.items()
        if found
    )


def section_of(message: Message) -> str:
    """Return the heading under which a message is listed."""
    prefixes = {prefix: section for section, prefixes in SECTIONS.items() for prefix in prefixes}
    fitting = [prefix for prefix in prefixes if message.file.startswith(prefix)]
    return prefixes[max(fitting, key=len)]


def _rows(found: Iterable[Message]) -> list[list[str]]:
    """Return one row for each problem, with all of its remedies; unnamed problems come last."""
    remedies: dict[str, dict[str, None]] = {}
    unnamed: dict[str, None] = {}
    for message in found:
        if re.search(r"[a-z]{2}", message.what):
            remedies.setdefault(message.what, {})[message.remedy] = None
        else:
            unnamed[message.remedy] = None
    rows = [[escaped(what), _joined(texts)] for what, texts in remedies.items()]
    return [*rows, *([_UNNAMED, escaped(remedy)] for remedy in unnamed)]


def _joined(remedies: Iterable[str]) -> str:
    return "<br>".join(map(escaped, remedies))
