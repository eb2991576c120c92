"""Conversion of the graphs in a folder by ONNX Runtime's own converter, in a process of its own.

The converter optimizes each graph as the runtime does when it opens one, and writes what is left in
the runtime's flatbuffer format. It prints, and logs to standard error, what is captured here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from compressor.errors import PassError
from passes.common.graph_conversion import describe_failure
from passes.common.reproducible_child import run_module
from passes.export_ort.config import ExportOrtConfig

OPERATORS = "required_operators_and_types.config"
"""List of operators and types, as ``--include_ops_by_config`` of a reduced build reads it."""
_CONVERTER = "onnxruntime.tools.convert_onnx_models_to_ort"
_WRITTEN = "ort"
"""Folder that the converter writes to."""
_PLATFORMS = {"arm64": "arm", "amd64": "amd64"}
_STYLES = {"applied": "Fixed", "saved": "Runtime"}
_SAVED_SUFFIX = ".with_runtime_opt"


def convert_graphs(config: ExportOrtConfig, folder: Path) -> dict[str, Path]:
    """Write a ``.ort`` file beside each ``.onnx`` file of a folder, and the list of operators.

    Returns:
        The name of each graph, to its ``.ort`` file.

    Raises:
        PassError: ONNX Runtime cannot open a graph, or cannot write one.
    """
    _run_converter(config, folder)
    written, files = folder / _WRITTEN, {}
    for graph in sorted(folder.glob("*.onnx")):
        files[graph.name] = graph.with_suffix(".ort")
        (written / f"{graph.stem}{_suffix(config)}.ort").rename(files[graph.name])
    [listed] = written.glob("*.config")
    operators = _without_paths(listed.read_text(encoding="utf-8"), files)
    (folder / OPERATORS).write_text(operators, encoding="utf-8")
    shutil.rmtree(written)
    return files


def _run_converter(config: ExportOrtConfig, folder: Path) -> None:
    arguments = [
        *(".", "--output_dir", _WRITTEN),
        *("--optimization_style", _STYLES[config.optimizations]),
        *("--target_platform", _PLATFORMS[config.platform]),
        "--enable_type_reduction",
    ]
    process = run_module(_CONVERTER, arguments, folder)
    if process.returncode:
        raise PassError(
            f"ONNX Runtime's converter {describe_failure(process, folder)}",
            remedy="`autoglm-compress lint` and `show` describe the graph; export it again if ONNX "
            "Runtime does not open it",
        )


def _suffix(config: ExportOrtConfig) -> str:
    return _SAVED_SUFFIX if config.optimizations == "saved" else ""


def _without_paths(listed: str, files: dict[str, Path]) -> str:
    """Return the list of operators with names of files in place of this machine's paths."""
    lines = [line for line in listed.splitlines() if not line.startswith("#")]
    names = ", ".join(file.name for file in files.values())
    return "\n".join([f"# Operators and types of {names}", *lines, ""])
