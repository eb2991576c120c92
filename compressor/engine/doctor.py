"""What this machine can do, and what is missing for which pass."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from compressor.config import discovery
from compressor.engine.machine import available_memory_bytes, environment, gemm_flops_per_second, tool_version
from compressor.errors import CompressError
from compressor.runtimes.cuda import gpus

_INTERESTING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
_TOOLS = {
    "torch": "core",
    "onnx": "core",
    "onnxruntime": "core",
    "onnxscript": "core",
    "onnxsim": "core",
    "qtawesome": "phone-bed",
    "espeakng-loader": "phone-bed",
    "pillow": "phone-bed",
    "tensorrt-rtx": "trt-rtx",
}


class Check(BaseModel):
    """One thing looked at."""

    model_config = ConfigDict(frozen=True)

    name: str
    ok: bool
    value: str
    remedy: str | None = None


class Diagnosis(BaseModel):
    """All of it; ``ok`` when nothing that a default pipeline needs is missing."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    checks: tuple[Check, ...]
    machine: dict[str, Any]


def diagnose(store: Path) -> Diagnosis:
    """Look at the machine, the libraries, the plugins and the store's disk."""
    machine = environment(0, "cpu").model_dump(exclude={"threads", "device"})
    checks = [_tool(name, extra) for name, extra in _TOOLS.items()]
    for group in (discovery.PASSES, discovery.SOURCES, discovery.FAMILIES):
        checks += [_plugin(group, name) for name in discovery.names(group)]
    existing = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    checks.append(Check(name=f"disk at {store}", ok=free > 1 << 30, value=f"{free / 1e9:.1f} GB free"))
    memory = available_memory_bytes()
    checks.append(Check(name="memory", ok=memory > 2 << 30, value=f"{memory / 1e9:.1f} GB available"))
    machine["cpu_flags"] = _flags()
    machine["gemm_gflops_fp32"] = round(gemm_flops_per_second() / 1e9, 1)
    machine["gpus"] = ", ".join(f"{one.name} ({one.target})" for one in gpus()) or "none"
    machine["python"] = platform.python_version()
    return Diagnosis(ok=all(check.ok for check in checks), checks=tuple(checks), machine=machine)


def _tool(name: str, extra: str) -> Check:
    version = tool_version(name)
    missing = version == "not installed"
    package = "autoglm-compress" if extra == "core" else f"'autoglm-compress[{extra}]'"
    return Check(name=name, ok=not missing, value=version, remedy=f"pip install {package}" if missing else None)


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
    line = next((line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("flags")), "")
    present = set(line.split())
    return [flag for flag in _INTERESTING_FLAGS if flag in present]
