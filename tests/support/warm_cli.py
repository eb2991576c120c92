"""``python -m tests.support.warm_cli``: run commands in forks of a process with loaded libraries.

A fresh process spends two to three seconds on importing torch and transformers, which is most of
the time of a test that runs a command on a tiny model. Each command still has a process of its own,
with its exit code, folder, environment and output. What the interpreter reads when it starts
(PYTHONPATH, OMP_NUM_THREADS) is that of this process. ``forked.py`` forks the tests' own process
instead, so that a test can change the program or stop it at a file operation.

The measuring processes of a command are forks too (``warm_workers.py``), requested at the socket
whose path is the argument.

Reads a ``WarmCall`` from each line of stdin, and writes the exit code of each to a line of stdout;
minus a number for a signal. Ends with the end of stdin.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from pydantic import BaseModel

import cli
from compressor.config.discovery import PASSES, load, names
from tests.support.warm_workers import serve_workers, use_warm_workers

_LIBRARIES = (  # without onnxruntime, which starts a thread that a fork does not have
    *("torch", "torch._dynamo", "torch.onnx", "transformers.modeling_utils"),
    *("onnx", "onnx_ir", "onnxscript"),
)
_POLL_SECONDS = 0.003


class WarmCall(BaseModel):
    """One command."""

    arguments: list[str]
    folder: Path
    environment: dict[str, str]
    output: Path
    """File for the stdout of the command."""
    errors: Path
    """File for its stderr."""
    timeout_seconds: float


def main() -> None:
    """Load the libraries, then answer calls."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    load_libraries()
    gc.freeze()  # the collector of a child would copy every page
    workers = Path(sys.argv[1])
    if os.fork() == 0:
        serve_workers(workers)
        os._exit(0)
    use_warm_workers(lambda: workers)
    for line in sys.stdin.buffer:
        answers.write(f"{run(WarmCall.model_validate_json(line))}\n")


def load_libraries() -> None:
    """Import the passes and the libraries that they import where they use them."""
    for name in names(PASSES):
        load(PASSES, name)
    for library in _LIBRARIES:
        import_module(library)


def run(call: WarmCall) -> int:
    """Run a command in a fork, and return its exit code."""
    child = os.fork()
    if child == 0:
        _become(call)
        cli.main()
    limit = time.monotonic() + call.timeout_seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _become(call: WarmCall) -> None:
    """Give this process the arguments, folder, environment and output of a command."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in ((1, call.output), (2, call.errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(call.environment)
    os.chdir(call.folder)
    sys.argv = ["autoglm-compress", *call.arguments]
    sys.modules["__main__"] = cli  # Typer takes the name of the program from it


if __name__ == "__main__":
    main()
