"""Rows of `show` for engines and build bundles."""

from pathlib import Path

from compressor.runtimes.formats import format_named
from compressor.runtimes.tensorrt.manifest import (
    ENGINE,
    EngineFile,
    EngineManifest,
    TensorInfo,
    write_record,
)
from compressor.runtimes.tensorrt.profiles import Profile


def test_the_facts_of_an_engine_are_those_of_its_manifest(tmp_path: Path) -> None:
    tensor = TensorInfo(name="x", dtype="half", shape=(-1, 3))
    engine = EngineFile(
        file="model.sm86.engine",
        target="sm86",
        sha256="ab" * 32,
        bytes=7,
        warnings=("slow",),
        executed=False,
    )
    manifest = EngineManifest(
        backend="rtx",
        precision="int8",
        floats="fp16",
        workspace_mb=64,
        optimization_level=None,
        profiles={"x": Profile(min=(1, 3), opt=(2, 3), max=(4, 3))},
        onnx={"model.onnx": "cd" * 32},
        backend_version="1.7",
        inputs=(tensor,),
        outputs=(tensor,),
        layer_types={"half": 2, "int8": 5},
        engines=(engine,),
    )
    write_record(manifest, tmp_path / ENGINE)
    facts = " ".join(" ".join(row) for row in format_named("engine").describe(tmp_path))
    for text in (
        "built by rtx 1.7",
        "precision int8",
        "profile x min [1, 3], opt [2, 3], max [4, 3]",
        "input x half [-1, 3]",
        "2 half, 5 int8",
        "never executed, sha256 abab",
        "model.sm86.engine warning slow",
    ):
        assert text in facts


def test_the_facts_of_a_bundle_name_it_as_one(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text('{"command": "trtexec"}')
    (bundle, command) = format_named("engine").describe(tmp_path)
    assert "build bundle" in bundle[1]
    assert command == ("command", "trtexec")
