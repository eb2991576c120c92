"""Commands to mel frames, in processes of their own: espeak-ng keeps global state.

As a program (``python -m calibration.sources.phone_bed.speak``): a JSON list of [text, voice, words a minute, pitch] on stdin,
the uint8 frames [MELS, FRAMES] of each on stdout, in order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from calibration.sources.phone_bed.espeak import FRAMES, MELS, Speaker, log_mel, resampled
from compressor.errors import DataError

Request = tuple[str, str, int, int]
_PROCESSES: Final = 2
_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)
_BYTES: Final = MELS * FRAMES


def spoken(
    requests: Sequence[Request], progress: Callable[[int], None]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [N, MELS, FRAMES]; ``progress`` is called with the number done.

    Raises:
        DataError: a process failed; what it printed is told.
    """
    out = np.zeros((len(requests), MELS, FRAMES), dtype=np.uint8)
    done = [0] * _PROCESSES

    def work(number: int) -> None:
        rows = range(number, len(requests), _PROCESSES)
        for row, frames in zip(rows, _frames([requests[row] for row in rows]), strict=True):
            out[row] = frames
            done[number] += 1
            if done[number] % 32 == 0 or done[number] == len(rows):
                progress(sum(done))

    with ThreadPoolExecutor(_PROCESSES) as pool:
        list(pool.map(work, range(_PROCESSES)))
    return out


def _frames(requests: list[Request]) -> Any:
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
                content = process.stdout.read(_BYTES)
                if len(content) < _BYTES:
                    told = process.stderr.read().decode(errors="replace").strip()
                    raise DataError(
                        f"espeak-ng failed: {told.splitlines()[-1] if told else 'no message'}"
                    )
                yield np.frombuffer(content, dtype=np.uint8).reshape(MELS, FRAMES)
        finally:
            process.kill()


def main() -> None:
    """Speak what stdin asks for."""
    speaker = Speaker()
    for text, voice, words_per_minute, pitch in json.load(sys.stdin):
        frames = np.zeros((MELS, FRAMES), dtype=np.uint8)
        mel = log_mel(resampled(speaker.say(text, voice, words_per_minute, pitch), speaker.rate))
        frames[:, : mel.shape[1]] = mel
        sys.stdout.buffer.write(frames.tobytes())


if __name__ == "__main__":
    main()
