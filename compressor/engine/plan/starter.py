"""What ``init`` writes: a pipeline to start from, whole and commented."""

from __future__ import annotations

import json
from pathlib import Path

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.engine.plan.schema import pipeline_schema
from compressor.errors import UsageError

STARTERS = {
    "phone": """\
# yaml-language-server: $schema=pipeline.schema.json
# The phone agent's bed: a teacher, a student that learns from it, and the student as ONNX. Every step is measured.
version: 1
name: phone
seed: 0
threads: 2

model: {family: autoglm-phone, preset: bed-teacher, measure: false}

data:
  train: {source: phone-bed, split: train, commands_per_screen: 4}
  validation: {source: phone-bed, split: validation}
  test: {source: phone-bed, split: test}

evaluate:
  accuracy: {data: test, metrics: [top1]}
  latency: {batch_size: 1, warmup: 10, repeats: 100, threads: 2}

passes:
  - {type: train, name: teacher}
  - {type: distill, name: student, student: {slim: bed-student}}
  - {type: export-onnx, name: onnx}

gates:
  - {metric: top1, max_drop: 0.01, step: onnx, against: student}
""",
    "images": """\
# yaml-language-server: $schema=pipeline.schema.json
# A classifier of your own pictures: data/train/<class>/*.png and data/test/<class>/*.png. Set num_classes to their number.
version: 1
name: images
seed: 0
threads: 2

model: {family: image-classifier, preset: small, config: {image_size: 64, num_classes: 10}, measure: false}

data:
  train: {source: images, path: data/train, image_size: 64}
  test: {source: images, path: data/test, image_size: 64}

evaluate:
  accuracy: {data: test, metrics: [top1]}
  latency: {batch_size: 1, warmup: 10, repeats: 100, threads: 2}

passes:
  - {type: train, train: train, validation: null, training: {steps: 500}}
  - {type: export-onnx}
""",
}


def write_starter(folder: Path, name: str) -> Path:
    """Write ``pipeline.yaml`` and its schema into ``folder``; returns the file.

    Raises:
        UsageError: there is no such starter, or a pipeline.yaml is there already.
    """
    if name not in STARTERS:
        raise UsageError(f"there is no starter {name!r}", remedy=f"one of {', '.join(STARTERS)}")
    file = folder / "pipeline.yaml"
    if file.exists():
        raise UsageError(
            f"{file} is there already", remedy="choose another folder, or remove it first"
        )
    with writing(folder):
        write_atomic(file, STARTERS[name].encode())
        write_atomic(
            folder / "pipeline.schema.json", json.dumps(pipeline_schema(), indent=1).encode()
        )
    return file
