"""Starter pipelines that ``init`` writes."""

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
# The phone bed: train a teacher, distill a student, export it to ONNX. Every step is measured.
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
# A classifier of your own images: data/train/<class>/*.png and data/test/<class>/*.png.
# Set num_classes to the number of classes.
version: 1
name: images
seed: 0
threads: 2

model:
  family: image-classifier
  preset: small
  config: {image_size: 64, num_classes: 10}
  measure: false

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
    """Write a starter pipeline and its JSON Schema into ``folder``, and return the file.

    Raises:
        UsageError: the starter does not exist, or the folder already has a pipeline.yaml.
    """
    if name not in STARTERS:
        raise UsageError(f"there is no starter {name!r}", remedy=f"one of {', '.join(STARTERS)}")
    file = starter_file(folder)
    write_pipeline(file, STARTERS[name])
    return file


def starter_file(folder: Path) -> Path:
    """Return the path of a new pipeline.yaml in ``folder``.

    Raises:
        UsageError: there is one already.
    """
    file = folder / "pipeline.yaml"
    if file.exists():
        raise UsageError(
            f"{file} already exists", remedy="choose another folder, or remove it first"
        )
    return file


def write_pipeline(file: Path, text: str) -> None:
    """Write a pipeline file, and the JSON Schema beside it.

    The pipeline comes last: a command that is killed before can be repeated.
    """
    with writing(file.parent):
        write_atomic(
            file.with_name("pipeline.schema.json"),
            json.dumps(pipeline_schema(), indent=1).encode(),
        )
        write_atomic(file, text.encode())
