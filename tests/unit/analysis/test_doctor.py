"""What the doctor finds missing, and what that comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.analysis import doctor
from compressor.runtimes.onnxruntime import integer_kernels


def test_an_extra_that_is_missing_is_named_with_its_command_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.tool_version
    gone = {"cryptography", "tensorrt-rtx"}
    monkeypatch.setattr(
        doctor, "tool_version", lambda name: "not installed" if name in gone else real(name)
    )
    found = doctor.diagnose(tmp_path)
    extras = {
        check.name.split(",")[0]: check for check in found.checks if check.name.startswith("extra")
    }
    assert extras["extra provenance"].remedy == "pip install 'autoglm-compress[provenance]'"
    assert "sign, export" in extras["extra provenance"].name
    assert not extras["extra trt-rtx"].ok
    assert found.ok


def test_what_every_pipeline_needs_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.tool_version
    monkeypatch.setattr(
        doctor, "tool_version", lambda name: "not installed" if name == "onnx" else real(name)
    )
    assert not doctor.diagnose(tmp_path).ok


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("flags\t: fpu avx2 avx512_vnni", ["avx2", "avx512_vnni"]),
        ("Features : asimd i8mm", ["asimd", "i8mm"]),
        ("", []),
    ],
)
def test_instructions_of_x86_and_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, flags: list[str]
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor: 0\n{line}\n")
    monkeypatch.setattr(doctor, "Path", lambda _: tmp_path / "cpuinfo")
    assert doctor._flags() == flags


def test_the_machine_is_told(tmp_path: Path) -> None:
    told = doctor.diagnose(tmp_path).machine
    assert {
        "cpu",
        "cores",
        "memory_bytes",
        "instructions",
        "int8",
        "gpus",
        "onnxruntime",
    } <= told.keys()
    assert "CPU" in told["onnxruntime"]


@pytest.mark.parametrize("wrong", [False, True])
def test_products_that_saturate_are_told(
    wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer_kernels, "integer_products_saturate", lambda: wrong)
    assert ("session.x64quantprecision=1" in doctor.diagnose(tmp_path).machine["int8"]) == wrong
