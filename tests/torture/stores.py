"""A toy store, the commands that write to it, and what must hold of it afterwards."""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from compressor.artifacts.manifest import Metric
from compressor.engine.run import step_builder
from compressor.evaluation.records import LatencyReport, Measurement
from compressor.reports.pages import html
from tests.support.forked import Outcome, run_forked
from tests.support.tiny_files import tiny_onnx

PIPELINE = """\
version: 1
name: toy
model: {path: model}
data: {samples: {source: arrays, path: samples.npz}}
evaluate: {latency: {data: samples, repeats: 2, threads: 1}}
passes:
  - {type: toy, name: first}
  - {type: toy, name: second, rounds: 3}
"""
_RANDOM = re.compile(r"[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True)
class Command:
    """A command that writes."""

    name: str
    words: tuple[str, ...]
    template: str
    """Name of the home that it starts from."""
    again: frozenset[int] = frozenset({0})
    """Exit codes of the same command after a kill."""


COMMANDS = (
    Command("run", ("run", "pipeline.yaml"), "empty"),
    Command("run cached", ("run", "pipeline.yaml"), "built"),
    Command(
        "measure again", ("run", "pipeline.yaml", *("--set", "evaluate.latency.repeats=3")), "built"
    ),
    Command("run --force", ("run", "pipeline.yaml", "--force"), "built"),
    Command("gc", ("gc",), "two runs"),
    Command("archive", ("archive", "FIRST", "new.tar.zst"), "built", frozenset({0, 2})),
    Command("restore", ("restore", "first.tar.zst", "-o", "artifacts"), "archived"),
    Command("sign", ("sign", "FIRST", "--key", "key.pem"), "built"),
    Command("report", ("report",), "built"),
    Command("init", ("init", "new"), "empty", frozenset({0, 2})),
)


def prepare_child() -> None:
    """Give every model the latency that ``evaluate.latency.repeats`` states, without running it.

    Reports have no charts, which take most of the time of a run, and are no files of their own.
    """

    def measure(model: object, evaluate: object, *_: object, **__: object) -> Measurement:
        repeats = evaluate.latency.repeats  # type: ignore[attr-defined]
        metric = Metric(
            name="latency_p50_ms", value=repeats, unit="ms", better="lower", samples=repeats
        )
        report = LatencyReport(
            runtime="none",
            batch_size=1,
            threads=1,
            warmup=0,
            metrics=(metric,),
            milliseconds=(1.0,) * repeats,
        )
        return Measurement(accuracy=None, latency=report, metrics=(metric,))

    step_builder.measure = measure  # type: ignore[assignment]
    html._artifact_figures = html._run_figures = lambda *_: {}  # type: ignore[assignment]


def run_in(
    home: Path, words: tuple[str, ...], prepare: Callable[[], object] = lambda: None
) -> Outcome:
    """Run a command in a home; FIRST stands for the artifact of its first toy step."""

    def start() -> None:
        os.chdir(home)
        prepare_child()
        prepare()

    first = next(iter(sorted((home / "artifacts").glob("toy-*"))), home / "FIRST").relative_to(home)
    return run_forked(*(str(first) if word == "FIRST" else word for word in words), prepare=start)


@cache
def warm_up() -> None:
    """Import what the commands import, so that forked children start at once."""
    home = Path(tempfile.mkdtemp(prefix="torture-warm-"))
    (home / "model").mkdir()
    (home / "model" / "model.onnx").write_bytes(tiny_onnx())
    (home / "pipeline.yaml").write_text(PIPELINE)
    np.savez(home / "samples.npz", x=np.zeros((4, 1), np.float32))
    listing = home / "modules.txt"
    readers = (("history",), ("report",), ("verify",), ("gc",), ("plan", "pipeline.yaml"))
    of_one = (("show", "FIRST"), ("compare", "FIRST", "FIRST"), ("archive", "FIRST", "a.tar.zst"))
    gate = ("gate", "artifacts", "--against", "artifacts")
    restore = ("restore", "a.tar.zst", "-o", "new")
    for words in (("run", "pipeline.yaml"), *readers, *of_one, gate, restore, ("init", "init")):
        run_in(home, words, lambda: at_exit(lambda: listing.write_text("\n".join(sys.modules))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in listing.read_text().split():
                with suppress(ImportError):
                    importlib.import_module(name)
    shutil.rmtree(home)
    for name in ("artifact.html.j2", "run.html.j2"):
        html._environment().get_template(name)
    gc.freeze()  # the collector of a child would copy every page of this process


def at_exit(report: Callable[[], object]) -> None:
    """Call ``report`` at the end of this forked child."""
    exit_now = os._exit

    def leave(code: int) -> None:
        report()
        exit_now(code)

    os._exit = leave  # type: ignore[assignment]


@cache
def template(name: str) -> Path:
    """Return a home that must not be changed: empty, built, two runs, or archived."""
    warm_up()
    home = Path(tempfile.mkdtemp(prefix="torture-template-"))
    (home / "model").mkdir()
    (home / "model" / "model.onnx").write_bytes(tiny_onnx())
    np.savez(home / "samples.npz", x=np.zeros((4, 1), np.float32))
    (home / "pipeline.yaml").write_text(PIPELINE)
    if name == "empty":
        return home
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(home / "key.pem")]
    subprocess.run(command, check=True, capture_output=True)
    _succeed(home, ("run", "pipeline.yaml"))
    if name == "two runs":
        _succeed(home, ("run", "pipeline.yaml", "--set", "passes[1].rounds=4"))
    if name == "archived":
        _succeed(home, ("archive", "FIRST", "first.tar.zst"))
        shutil.rmtree(home / "artifacts")
    return home


def copy_template(name: str, home: Path) -> None:
    """Copy a template into an empty folder."""
    shutil.copytree(template(name), home, dirs_exist_ok=True)


def _succeed(home: Path, words: tuple[str, ...]) -> None:
    outcome = run_in(home, words)
    assert outcome.code == 0, outcome.printed


def content(home: Path) -> dict[str, str]:
    """Return what a command leaves: path to digest for models, to nothing for other files.

    The digests of runs and the times in reports differ between two executions.
    """
    files = {}
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        parts = path.relative_to(home).parts
        if path.is_dir() or ".locks" in parts:
            continue
        if "runs" in parts:
            name = "/".join(_RANDOM.sub("…", part) for part in parts)
        is_stable = "model" in parts or path.suffix in {".yaml", ".sig"}
        files[name] = hashlib.sha256(path.read_bytes()).hexdigest() if is_stable else ""
    return files


def problem_of(home: Path) -> str | None:
    """Return what is wrong with a store that a command has left or was killed in."""
    store = home / "artifacts"
    if not store.is_dir():
        return None
    outcome = run_in(home, ("verify", "artifacts"))
    if outcome.code not in {0, 2} or "Traceback" in outcome.printed:
        return f"verify ends with {outcome.code}: {outcome.printed.strip()[-300:]}"
    return None


def leftovers(home: Path) -> list[str]:
    """Return temporary files and folders: no command runs now."""
    return [
        path.relative_to(home).as_posix()
        for path in home.rglob("*")
        if path.name.endswith(".tmp")
        or path.name == ".next"
        or path.name.startswith(("session-", ".session-"))
        or (path.parent.name == ".staging" and "-" in path.name)
    ]
