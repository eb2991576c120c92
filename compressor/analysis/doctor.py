"""Diagnosis of this machine: libraries, extras, plugins, GPUs, disk and memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from compressor.config import discovery
from compressor.engine.machine import (
    available_memory_bytes,
    environment,
    gemm_flops_per_second,
    tool_version,
)
from compressor.errors import CompressError
from compressor.runtimes.tensorrt.backends import BACKENDS, Backend, import_backend
from compressor.runtimes.tensorrt.cuda import list_gpus

_INSTRUCTIONS = {
    "avx2": "float kernels of 8 values",
    "avx512f": "float kernels of 16 values",
    "avx_vnni": "fast INT8 products",
    "avx512_vnni": "fast INT8 products",
    "avx512_bf16": "BF16 products",
    "amx_int8": "INT8 tiles",
    "amx_bf16": "BF16 tiles",
    "asimd": "float kernels of 4 values",
    "asimddp": "fast INT8 products",
    "i8mm": "INT8 tiles",
    "bf16": "BF16 products",
    "sve": "wide float kernels",
}
"""Flag of /proc/cpuinfo (x86 and Arm) to the operations that it accelerates."""
_INT8 = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
_CORE = ("torch", "onnx", "onnxruntime", "onnxscript", "onnxsim", "transformers")
_EXTRAS = {
    "phone-bed": (("qtawesome", "espeakng-loader", "pillow"), "the data source phone-bed"),
    "heic": (("pillow-heif",), "pictures in HEIC"),
    "parquet": (("pyarrow",), "data in parquet files"),
    "trt-rtx": (("tensorrt-rtx",), "the pass tensorrt, for RTX GPUs of any machine"),
    "trt": (("tensorrt",), "the pass tensorrt, for this machine's GPU"),
    "gguf": (("gguf",), "the pass export-gguf"),
    "llamacpp": (("xllamacpp",), "measuring GGUF files in llama.cpp"),
    "mnn": (("MNN",), "the pass export-mnn, and measuring its files"),
    "provenance": (
        ("cryptography", "zstandard", "cyclonedx-python-lib"),
        "sign, archive, restore, sbom",
    ),
    "serve": (
        ("starlette", "uvicorn", "llguidance", "prometheus-client"),
        "serve, and answers that follow a grammar",
    ),
}
"""Extra to its distributions and the features that need them."""
_MIN_DISK_BYTES = 1 << 30
_MIN_MEMORY_BYTES = 2 << 30


class Check(BaseModel):
    """Result of one check."""

    model_config = ConfigDict(frozen=True)

    name: str
    ok: bool
    value: str
    remedy: str | None = None
    optional: bool = False
    """True if pipelines can do without it."""


class Diagnosis(BaseModel):
    """Result of `doctor`."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    """True if every check passes that is not optional."""
    checks: tuple[Check, ...]
    machine: dict[str, Any]
    """Label to a property of the hardware."""


def diagnose(store: Path) -> Diagnosis:
    """Check libraries, extras, plugins, TensorRT backends, memory, and the disk of a store."""
    checks = [_tool(name) for name in _CORE]
    checks += [_extra(name, *needed) for name, needed in _EXTRAS.items()]
    checks += [_backend(backend) for backend in BACKENDS.values() if backend.installed]
    for group in (
        discovery.PASSES,
        discovery.SOURCES,
        discovery.FAMILIES,
        discovery.METRICS,
    ):
        checks += [_plugin(group, name) for name in discovery.names(group)]
    existing = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    free, memory = shutil.disk_usage(existing).free, available_memory_bytes()
    disk_ok, memory_ok = free > _MIN_DISK_BYTES, memory > _MIN_MEMORY_BYTES
    checks.append(Check(name=f"disk at {store}", ok=disk_ok, value=f"{free / 1e9:.1f} GB free"))
    checks.append(Check(name="memory", ok=memory_ok, value=f"{memory / 1e9:.1f} GB available"))
    ok = all(check.ok or check.optional for check in checks)
    return Diagnosis(ok=ok, checks=tuple(checks), machine=_machine())


def _machine() -> dict[str, Any]:
    flags = _flags()
    instructions = "; ".join(f"{flag}: {_INSTRUCTIONS[flag]}" for flag in flags)
    return {
        **environment(0, "cpu").model_dump(exclude={"threads", "device"}),
        "instructions": instructions or "none that accelerate models",
        "int8": _int8_support(flags),
        "gemm_gflops_fp32": round(gemm_flops_per_second() / 1e9, 1),
        "gpus": ", ".join(f"{gpu.name} ({gpu.target})" for gpu in list_gpus()) or "none",
        "onnxruntime": ", ".join(_providers()) or "not installed",
    }


def _int8_support(flags: list[str]) -> str:
    """Describe the speed of INT8 graphs here, and the exactness of ONNX Runtime's products."""
    text = "fast" if _INT8 & set(flags) else "no INT8 instructions: expect little speedup from INT8"
    if _providers():
        from compressor.runtimes.onnxruntime.integer_kernels import (
            EXACT_PRODUCTS,
            integer_products_saturate,
        )

        [(key, value)] = EXACT_PRODUCTS.items()
        if integer_products_saturate():
            text += (
                "; ONNX Runtime saturates large products, which reduces accuracy: "
                f"open INT8 graphs with {key}={value}, except those with weights that two layers "
                "share, which ONNX Runtime does not open with it"
            )
    return text


def _providers() -> list[str]:
    """Return the execution providers of ONNX Runtime; none if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return [
        name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
    ]


def _tool(name: str) -> Check:
    version = tool_version(name)
    missing = version == "not installed"
    return Check(
        name=name,
        ok=not missing,
        value=version,
        remedy="pip install autoglm-compress" if missing else None,
    )


def _extra(name: str, distributions: tuple[str, ...], needed_for: str) -> Check:
    versions = {distribution: tool_version(distribution) for distribution in distributions}
    missing = [name for name, version in versions.items() if version == "not installed"]
    value = ", ".join(f"{distribution} {version}" for distribution, version in versions.items())
    return Check(
        name=f"extra {name}, for {needed_for}",
        ok=not missing,
        value=f"not installed: {', '.join(missing)}" if missing else value,
        remedy=f"pip install 'autoglm-compress[{name}]'" if missing else None,
        optional=True,
    )


def _backend(backend: Backend) -> Check:
    """Check that a backend loads, and list the GPUs that it builds for."""
    label = f"TensorRT backend {backend.name}"
    try:
        import_backend(backend)
    except CompressError as error:
        return Check(name=label, ok=False, value=error.what, remedy=error.remedy, optional=True)
    targets = backend.targets or [gpu.target for gpu in list_gpus()]
    value = f"builds for {', '.join(targets)}" if targets else "this machine has no GPU"
    return Check(name=label, ok=bool(targets), value=value, optional=True)


def _plugin(group: str, name: str) -> Check:
    label = f"{group.rsplit('.', 1)[-1]}: {name}"
    try:
        plugin = type(discovery.load(group, name))
    except CompressError as error:
        return Check(name=label, ok=False, value=error.what, remedy=error.remedy)
    return Check(name=label, ok=True, value=f"{plugin.__module__}.{plugin.__name__}")


def _flags() -> list[str]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return []
    lines = info.read_text(encoding="utf-8").splitlines()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    present = set(line.split())
    return [flag for flag in _INSTRUCTIONS if flag in present]
