"""Mel frames of commands, synthesized in child processes since espeak-ng keeps global state.

The program ``python -m calibration.sources.phone_bed.speak`` reads a JSON list of [text, voice,
words per minute, pitch] from stdin, and writes the uint8 frames [MELS, FRAMES] of each to stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from calibration.sources.phone_bed.espeak import FRAMES, MELS, Speaker, log_mel, resample
from compressor.errors import DataError

Frames = np.ndarray[Any, np.dtype[np.uint8]]
Request = tuple[str, str, int, int]
"""Text, voice, words per minute and pitch."""
_PROCESSES: Final = 2
_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)
_FRAMES_BYTES: Final = MELS * FRAMES


def synthesize_commands(requests: Sequence[Request], progress: Callable[[int], None]) -> Frames:
    """Return the frames of all commands, uint8 [N, MELS, FRAMES].

    Args:
        requests: the commands.
        progress: called with the number of commands done.

    Raises:
        DataError: a child process failed; the message has its last line of output.
    """
    frames = np.zeros((len(requests), MELS, FRAMES), dtype=np.uint8)
    done = [0] * _PROCESSES

    def work(process: int) -> None:
        rows = range(process, len(requests), _PROCESSES)
        results = _run_process([requests[row] for row in rows])
        for row, result in zip(rows, results, strict=True):
            frames[row] = result
            done[process] += 1
            if done[process] % 32 == 0 or done[process] == len(rows):
                progress(sum(done))

    with ThreadPoolExecutor(_PROCESSES) as pool:
        list(pool.map(work, range(_PROCESSES)))
    return frames


def _run_process(requests: list[Request]) -> Iterator[Frames]:
    """Run this module as a child process and yield the frames of each request."""
    root = Path(__file__).parents[3]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "calibration.sources.phone_bed.speak"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | _ONE_THREAD | {"PYTHONPATH": paths},
    )
    assert process.stdin and process.stdout and process.stderr  # noqa: S101 - all three are pipes
    with process:
        try:
            process.stdin.write(json.dumps(requests).encode())
            process.stdin.close()
            for _ in requests:
                content = process.stdout.read(_FRAMES_BYTES)
                if len(content) < _FRAMES_BYTES:
                    lines = process.stderr.read().decode(errors="replace").strip().splitlines()
                    raise DataError(f"espeak-ng failed: {lines[-1] if lines else 'no message'}")
                yield np.frombuffer(content, dtype=np.uint8).reshape(MELS, FRAMES)
        finally:
            process.kill()


def main() -> None:
    """Synthesize the requests on stdin."""
    speaker = Speaker()
    for text, voice, words_per_minute, pitch in json.load(sys.stdin):
        frames = np.zeros((MELS, FRAMES), dtype=np.uint8)
        speech = speaker.synthesize(text, voice, words_per_minute, pitch)
        mel = log_mel(resample(speech, speaker.sample_rate))
        frames[:, : mel.shape[1]] = mel
        sys.stdout.buffer.write(frames.tobytes())


if __name__ == "__main__":
    main()
