"""Measure an artifact in a fresh process, so that no runtime, cache or heap of another measurement warms it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import compressor
from compressor.artifacts.fingerprint import digest_json
from compressor.artifacts.kinds import Kind
from compressor.config.validation import references
from compressor.data.contract import SourceContext
from compressor.errors import PassError, UsageError
from compressor.evaluation.protocol import Answer, ReferenceModel, Request
from compressor.evaluation.records import EvaluateConfig, Measurement

EVALUATION_VERSION = 2
"""Bump it when the same model, data and ``evaluate:`` section may give other reports."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_TAIL_LINES = 12


def evaluation_digest(evaluate: EvaluateConfig, data: Mapping[str, str], reference: str | None) -> str:
    """What decides whether reports must be measured again.

    Args:
        evaluate: what is asked for.
        data: set to the digest of its content.
        reference: id of the artifact that is compared with; what its step is called cannot change a report.
    """
    asked = evaluate.model_dump(mode="json", exclude={"accuracy": {"reference"}})
    return digest_json({"version": EVALUATION_VERSION, "evaluate": asked, "data": dict(data), "reference": reference})


def measure(
    kind: Kind,
    model: Path,
    evaluate: EvaluateConfig,
    sources: Mapping[str, Mapping[str, Any]],
    context: SourceContext,
    *,
    reference: ReferenceModel | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Measurement:
    """Accuracy, latency, memory, size, parameters and MACs of the model in a folder, as ``evaluate`` asks.

    Args:
        kind: decides the runtime.
        model: the folder that the runtime opens.
        evaluate: what is measured.
        sources: data set to the config of its source, in JSON values.
        context: what those sources may use.
        reference: what `agreement` and `kl` compare with.
        progress: called as (what, done, total).

    Raises:
        CompressError: whatever the measuring process raised, as the same class.
        UsageError: ``evaluate`` names a set that is not in ``sources``.
        PassError: the process crashed; the end of what it printed is told.
    """
    request = _request(kind, model, evaluate, sources, context, reference)
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "compressor.evaluation.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=_environment(evaluate.latency.threads if evaluate.latency else None),
    ) as process:
        reader = threading.Thread(target=tail.extend, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            last = _answer(process, request, progress)
            status = process.wait()
        finally:
            process.kill()
            reader.join()
    if last is not None and last.failure is not None:
        raise last.failure.rebuilt()
    if last is not None and last.measurement is not None:
        return last.measurement
    told = "".join(f"\n    {line.rstrip()}" for line in tail) or "\n    it printed nothing"
    how = f"was killed by signal {-status}" if status < 0 else f"ended with code {status}"
    raise PassError(f"the process that measures {request.model} {how}:{told}")


def _request(
    kind: Kind,
    model: Path,
    evaluate: EvaluateConfig,
    sources: Mapping[str, Mapping[str, Any]],
    context: SourceContext,
    reference: ReferenceModel | None,
) -> Request:
    used = {value for _, reference, value in references(evaluate) if reference.to == "data"}
    if missing := sorted(used - sources.keys()):
        raise UsageError(f"`evaluate:` names sets that `data:` does not have: {', '.join(missing)}")
    return Request(
        kind=kind,
        model=model.resolve(),
        evaluate=evaluate,
        sources={name: dict(sources[name]) for name in sorted(used)},
        reference=reference and reference.model_copy(update={"model": reference.model.resolve()}),
        base=context.base.resolve(),
        allow_code=context.allow_code,
        cache=context.cache.resolve(),
        parent=os.getpid(),
    )


def _environment(threads: int | None) -> dict[str, str]:
    """This process's own, with the package importable from wherever it lies, and libraries held to ``threads``."""
    root = str(Path(next(iter(compressor.__path__))).parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    limits = dict.fromkeys(_THREAD_VARIABLES, str(threads)) if threads else {}
    return {**os.environ, **limits, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _answer(
    process: subprocess.Popen[str], request: Request, progress: Callable[[str, int, int], None]
) -> Answer | None:
    """The last thing the process said."""
    assert process.stdin and process.stdout  # noqa: S101 - both are pipes
    _send(process.stdin, request)
    last: Answer | None = None
    for line in process.stdout:
        if not line.endswith("\n"):  # cut off by a crash
            break
        last = Answer.model_validate_json(line)
        if last.progress is not None:
            progress(*last.progress)
    return last


def _send(stdin: IO[str], request: Request) -> None:
    """A process that is gone already shows by its missing answer."""
    try:
        with stdin:
            stdin.write(request.model_dump_json())
    except BrokenPipeError:
        return
