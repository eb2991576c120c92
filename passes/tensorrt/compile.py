"""Engines built in a process of their own: the library's compiler can crash, and that shall cost one step, not the run.

The compiler also orders some of its work by where objects lie in memory: with addresses drawn at random, the bytes of a larger
engine differ from build to build. So the process has fixed addresses, a heap in one piece, a fixed hash seed, few variables in
its environment, and writes no bytecode (which would make a first run allocate otherwise than a second).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import passes
from compressor.errors import PassError
from compressor.runtimes.tensorrt.backends import BACKENDS
from passes.tensorrt.compile_worker import Answer, Request, keep

_TAIL_LINES = 12
_ADDR_NO_RANDOMIZE = 0x0040000  # linux/personality.h
_PASSED_ON = ("PATH", "HOME", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "TMPDIR")


def engine_from_onnx(request: Request, folder: Path) -> Answer:
    """Parse a graph, build its engine and write it; both files are named relative to ``folder``.

    Raises:
        PassError: the parser or the builder refuses it, or crashes; all that was said is told.
    """
    library = BACKENDS[request.backend].distribution
    where = f"{request.onnx} for {request.target or 'this GPU'}"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "passes.tensorrt.compile_worker"],
        input=request.model_dump_json(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        env=_environment(),
        preexec_fn=_fix_addresses,  # one call into libc
        check=False,
    )
    printed: list[str] = []
    for line in done.stderr.splitlines():
        keep(printed, line)
    if done.returncode != 0:
        how = (
            f"was killed by signal {-done.returncode}"
            if done.returncode < 0
            else f"ended with code {done.returncode}"
        )
        raise PassError(
            f"{library} {how} while it built {where}:\n"
            + "\n".join(f"    {line}" for line in printed[-_TAIL_LINES:] or ["it printed nothing"]),
            remedy="try another `precision`, `floats` or `optimization_level`; the graph may be right and its compiler wrong",
        )
    answer = Answer.model_validate_json(done.stdout)
    if answer.errors:
        raise PassError(
            f"{library} {answer.version} does not build {where}:\n"
            + "\n".join(f"    {line}" for line in answer.errors),
            remedy="`autoglm-compress lint --target tensorrt` names what TensorRT is known to refuse",
        )
    for line in answer.warnings:
        keep(printed, line)
    return answer.model_copy(update={"warnings": tuple(printed)})


def _environment() -> dict[str, str]:
    """What the library may need, and the package importable from wherever it lies."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return kept | {
        "PYTHONPATH": str(Path(next(iter(passes.__path__))).parent),
        "PYTHONHASHSEED": "0",
        "LC_ALL": "C.UTF-8",
        "MALLOC_MMAP_MAX_": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _fix_addresses() -> None:
    ctypes.CDLL(None).personality(_ADDR_NO_RANDOMIZE)
