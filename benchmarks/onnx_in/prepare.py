"""Write the float model and the samples of public models: FOLDER/data/NAME.

PEERS/bin/python -m benchmarks.onnx_in.prepare FOLDER [NAME …]
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import onnx

from benchmarks.onnx_in.audio import AUDIO
from benchmarks.onnx_in.model import Model, feeds, open_model
from benchmarks.onnx_in.text import TEXT
from benchmarks.onnx_in.vision import VISION
from benchmarks.onnx_in.wheels import Wheels

MODELS = {model.name: model for model in (*VISION, *AUDIO, *TEXT)}


def prepare(model: Model, wheels: Wheels) -> Path:
    """Return the folder with ``model.onnx``, ``calibration.npz`` and ``evaluation.npz``.

    What is there already is kept.
    """
    folder = wheels.folder / "data" / model.name
    if (folder / "model.onnx").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    session = open_model(model.path(wheels))
    for split, count in (("calibration", model.calibration), ("evaluation", model.evaluation)):
        arrays = model.samples(wheels, split, count)
        session.run(None, feeds(session, arrays)[0])
        np.savez(folder / f"{split}.npz", **arrays)
    onnx.checker.check_model(str(model.path(wheels)))
    shutil.copy(model.path(wheels), folder / "model.onnx")
    return folder


if __name__ == "__main__":
    for name in sys.argv[2:] or MODELS:
        start = time.perf_counter()
        print(
            prepare(MODELS[name], Wheels(Path(sys.argv[1]))), f"{time.perf_counter() - start:.0f} s"
        )
