"""Light commands load no heavy libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "tensorrt",
    "transformers",
    "matplotlib",
)


def loaded_modules(arguments: list[str], candidates: tuple[str, ...]) -> set[str]:
    """Return which of the candidates a command loads; the command must succeed."""
    code = (
        "import sys\n"
        "sys.argv = ['autoglm-compress', *sys.argv[1:]]\n"
        "try:\n"
        "    import cli\n"
        "    cli.main()\n"
        "except SystemExit as exit:\n"
        "    assert not exit.code, exit.code\n"
        "sys.stderr.write('loaded: ' + ' '.join(sys.modules))\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(candidates) & set(done.stderr.rpartition("loaded: ")[2].split())


@pytest.mark.parametrize(
    "arguments", [["plan", "{file}"], ["validate", "{file}"], ["passes"], ["schema"]]
)
def test_light_commands_load_neither_torch_nor_onnx(
    arguments: list[str], toy_pipeline: Path
) -> None:
    filled = [argument.format(file=toy_pipeline) for argument in arguments]
    assert not loaded_modules(filled, HEAVY)


def test_show_and_plans_of_single_files_load_neither_torch_nor_onnx(tmp_path: Path) -> None:
    from tests.support.model_files import gguf_header, write_json, write_weights
    from tests.support.tiny_files import tiny_onnx

    (tmp_path / "model.gguf").write_bytes(gguf_header())
    write_json(tmp_path / "other" / "config.json", {"model_type": "zzz"})
    write_weights(tmp_path / "other" / "model.safetensors")
    (tmp_path / "graph.onnx").write_bytes(tiny_onnx())
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text("version: 1\nname: p\nmodel: {path: graph.onnx}\npasses: []\n")
    for command in (
        ["show", str(tmp_path / "model.gguf")],
        ["show", str(tmp_path / "other")],
        ["plan", str(pipeline)],
    ):
        assert not loaded_modules(command, HEAVY), command


def test_a_history_that_is_indexed_reads_no_records(toy_pipeline: Path) -> None:
    store = str(toy_pipeline.parent / "store")
    subprocess.run([sys.executable, "-m", "cli", "run", toy_pipeline, "-o", store], check=True)
    records = ("compressor.artifacts.runs", "compressor.artifacts.manifest", "numpy", "yaml")
    assert loaded_modules(["history", "-o", store], records)
    assert not loaded_modules(["history", "-o", store], records)
    assert not loaded_modules(["history", "-o", store, "--json"], records)


def test_the_list_of_commands_needs_neither_pydantic_nor_numpy() -> None:
    assert not loaded_modules(["--help"], (*HEAVY, "pydantic", "numpy", "yaml"))


def test_the_help_of_a_command_needs_neither_numpy_nor_yaml() -> None:
    assert not loaded_modules(["run", "--help"], (*HEAVY, "numpy", "yaml"))
