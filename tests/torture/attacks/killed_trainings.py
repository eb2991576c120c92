"""Trainings are killed several times, between file operations or at any moment, and resumed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from tests.support.forked import Outcome, run_forked
from tests.support.tiny_files import draw_pictures
from tests.torture.operations import Operations, watch
from tests.torture.registry import Attack, Case
from tests.torture.stores import at_exit

PIPELINES = {
    "distill": """\
version: 1
name: pictures
threads: 1
model: {family: image-classifier, preset: tiny, config: {num_classes: 2}, measure: false}
data:
  train: {source: images, path: pictures, image_size: 16}
passes:
  - type: train
    name: teacher
    validation: null
    training: {steps: 30, batch_size: 4, checkpoint_every: 3}
  - type: distill
    name: student
    student: {slim: {vision_width: 4}}
    validation: train
    training:
      steps: 30
      batch_size: 4
      checkpoint_every: 3
      evaluate_every: 10
      ema_decay: 0.9
    features: {}
    feedback: {start: 0.2}
""",
    "prune": """\
version: 1
name: rounds
threads: 1
model:
  family: image-classifier
  preset: small
  config: {num_classes: 2, image_size: 16}
  measure: false
data:
  train: {source: images, path: pictures, image_size: 16}
passes:
  - type: prune
    target: {macs: 0.5}
    calibration: train
    recovery:
      validation: train
      training: {steps: 24, batch_size: 4, checkpoint_every: 3, ema_decay: 0.9}
    schedule: {kind: gradual, rounds: 4}
""",
}
_FEWEST_OPERATIONS = 20
_KILLS = 3


@cache
def warm_up() -> None:
    """Import what trainings import, so that forked children start at once."""
    import torch

    from compressor.runtimes.formats import installed_formats
    from passes.distill.step import Distill
    from passes.prune.step import Prune
    from passes.train.step import Train

    torch.set_num_threads(1)
    installed_formats()
    _ = Distill, Prune, Train
    for name in PIPELINES:  # imports the rest in children, and the operators' code into memory
        _whole(name)


def write(name: str, home: Path) -> Path:
    """Write a pipeline and its pictures into a folder; return the pipeline's file."""
    draw_pictures(home / "pictures", 12)
    file = home / "pipeline.yaml"
    file.write_text(PIPELINES[name])
    return file


def digests(home: Path) -> dict[str, str]:
    """Return the sha256 of every model file of the store in a folder, by its path."""
    store = home / "store"
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.glob("*/model/*"))
    }


def _run(home: Path, prepare: Callable[[], object] = lambda: None) -> Outcome:
    return run_forked("run", home / "pipeline.yaml", "-o", home / "store", prepare=prepare)


@cache
def _whole(name: str) -> tuple[dict[str, str], int, float]:
    """Return what an uninterrupted run leaves, its number of operations and its seconds."""
    home = Path(tempfile.mkdtemp(prefix="torture-training-"))
    write(name, home)
    operations, counted = Operations(), home / "count"

    def prepare() -> None:
        watch(home, operations)
        at_exit(lambda: counted.write_text(str(operations.count)))

    start = time.monotonic()
    outcome = _run(home, prepare)
    assert outcome.code == 0, outcome.printed
    return digests(home), int(counted.read_text()), time.monotonic() - start


def uninterrupted(name: str) -> dict[str, str]:
    """Return the digests of the models that an uninterrupted run leaves."""
    warm_up()
    return _whole(name)[0]


def kill(name: str, seed: float, home: Path, *, any_moment: bool) -> str | None:
    """Kill a run several times, and finish it; return what differs from an uninterrupted run.

    Args:
        name: of the pipeline.
        seed: of the moments.
        home: an empty folder.
        any_moment: kill after a time, instead of before a file operation.
    """
    source, (expected, count, seconds) = random.Random(seed), _whole(name)
    write(name, home)
    for _ in range(_KILLS):
        left = max(_FEWEST_OPERATIONS, count // _KILLS)
        number, delay = source.randrange(left), source.uniform(0, seconds / _KILLS)
        prepare = partial(_end_after, delay) if any_moment else partial(_end_at, home, number)
        outcome = _run(home, prepare)
        if outcome.code != -signal.SIGKILL:
            return f"not killed, exit code {outcome.code}: {outcome.printed[-300:]}"
    outcome = _run(home)
    if outcome.code != 0:
        return f"the run ends with {outcome.code}: {outcome.printed[-300:]}"
    return None if digests(home) == expected else "the resumed run leaves other bytes"


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _end_at(home: Path, number: int) -> None:
    watch(home, Operations(number, _end))


def _end_after(seconds: float) -> None:
    timer = threading.Timer(seconds, _end)
    timer.daemon = True
    timer.start()


def _cases(source: random.Random) -> Iterator[Case]:
    warm_up()
    for number in range(100):
        name = source.choice(sorted(PIPELINES))
        any_moment = bool(number % 2)
        yield (
            f"{name}, {'any moment' if any_moment else 'operations'} {number}",
            partial(kill, name, source.random(), any_moment=any_moment),
        )


ATTACK = Attack(
    "killed-trainings",
    "a training is killed several times and finished; it leaves the bytes of an uninterrupted one",
    _cases,
)
