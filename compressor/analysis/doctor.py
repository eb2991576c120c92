"""What this machine can do, and what is missing for which pass."""

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
"""Flag of /proc/cpuinfo (x86 and Arm) to what it is good for."""
_INT8 = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
_CORE = ("torch", "onnx", "onnxruntime", "onnxscript", "onnxsim", "transformers")
_EXTRAS = {
    "phone-bed": (("qtawesome", "espeakng-loader", "pillow"), "the data source phone-bed"),
    "trt-rtx": (("tensorrt-rtx",), "the pass tensorrt, for RTX GPUs that need not be here"),
    "trt": (("tensorrt",), "the pass tensorrt, for the GPU at hand"),
    "provenance": (
        ("cryptography", "zstandard", "cyclonedx-python-lib"),
        "sign, export, import, sbom",
    ),
}
"""Extra to its distributions and what needs them."""
_LEAST_BYTES = {"disk": 1 << 30, "memory": 2 << 30}


class Check(BaseModel):
    """One thing looked at."""

    model_config = ConfigDict(frozen=True)

    name: str
    ok: bool
    value: str
    remedy: str | None = None
    optional: bool = False
    """Whether a pipeline may do without it."""


class Diagnosis(BaseModel):
    """All of it; ``ok`` when nothing is missing that every pipeline needs."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    checks: tuple[Check, ...]
    machine: dict[str, Any]


def diagnose(store: Path) -> Diagnosis:
    """Look at the machine, the runtimes, the libraries, the plugins and the store's disk."""
    checks = [_tool(name) for name in _CORE]
    checks += [_extra(name, *needed) for name, needed in _EXTRAS.items()]
    checks += [_backend(one) for one in BACKENDS.values() if one.installed]
    for group in (discovery.PASSES, discovery.SOURCES, discovery.FAMILIES):
        checks += [_plugin(group, name) for name in discovery.names(group)]
    existing = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    free, memory = shutil.disk_usage(existing).free, available_memory_bytes()
    least = _LEAST_BYTES
    checks.append(
        Check(name=f"disk at {store}", ok=free > least["disk"], value=f"{free / 1e9:.1f} GB free")
    )
    checks.append(
        Check(name="memory", ok=memory > least["memory"], value=f"{memory / 1e9:.1f} GB available")
    )
    ok = all(check.ok or check.optional for check in checks)
    return Diagnosis(ok=ok, checks=tuple(checks), machine=_machine())


def _machine() -> dict[str, Any]:
    flags = _flags()
    return {
        **environment(0, "cpu").model_dump(exclude={"threads", "device"}),
        "instructions": "; ".join(f"{one}: {_INSTRUCTIONS[one]}" for one in flags)
        or "none of note",
        "int8": _integers(flags),
        "gemm_gflops_fp32": round(gemm_flops_per_second() / 1e9, 1),
        "gpus": ", ".join(f"{one.name} ({one.target})" for one in list_gpus()) or "none",
        "onnxruntime": ", ".join(_providers()) or "not installed",
    }


def _integers(flags: list[str]) -> str:
    """How INT8 graphs fare here: in speed, and in ONNX Runtime's products."""
    fast = bool(_INT8 & set(flags))
    told = (
        "multiplied fast"
        if fast
        else "no instructions of its own: expect little speed from INT8 here"
    )
    if _providers():
        from compressor.runtimes.onnxruntime.integer_kernels import (
            EXACT_PRODUCTS,
            integer_products_saturate,
        )

        [(key, value)] = EXACT_PRODUCTS.items()
        if integer_products_saturate():
            told += f"; ONNX Runtime clamps large products, which costs accuracy: open INT8 graphs with {key}={value}"
    return told


def _providers() -> list[str]:
    """What ONNX Runtime can compute on here."""
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
    versions = {one: tool_version(one) for one in distributions}
    missing = [one for one, version in versions.items() if version == "not installed"]
    told = (
        f"not installed: {', '.join(missing)}"
        if missing
        else ", ".join(f"{one} {v}" for one, v in versions.items())
    )
    return Check(
        name=f"extra {name}, for {needed_for}",
        ok=not missing,
        value=told,
        remedy=f"pip install 'autoglm-compress[{name}]'" if missing else None,
        optional=True,
    )


def _backend(backend: Backend) -> Check:
    """Whether it loads, and what it builds for."""
    label = f"TensorRT backend {backend.name}"
    try:
        import_backend(backend)
    except CompressError as error:
        return Check(name=label, ok=False, value=error.what, remedy=error.remedy, optional=True)
    here = [one.target for one in list_gpus()]
    value = f"builds for {', '.join(backend.targets or here) or 'no GPU: there is none here'}"
    return Check(name=label, ok=bool(backend.targets or here), value=value, optional=True)


def _plugin(group: str, name: str) -> Check:
    label = f"{group.rsplit('.', 1)[-1]}: {name}"
    try:
        found = type(discovery.load(group, name))
    except CompressError as error:
        return Check(name=label, ok=False, value=error.what, remedy=error.remedy)
    return Check(name=label, ok=True, value=f"{found.__module__}.{found.__name__}")


def _flags() -> list[str]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return []
    lines = info.read_text(encoding="utf-8").splitlines()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    present = set(line.split())
    return [flag for flag in _INSTRUCTIONS if flag in present]
