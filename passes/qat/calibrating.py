"""What a quantized model is told by samples: the ranges of its layers' inputs and results."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from calibration.capture import TensorObservers, observe_layers
from calibration.observers import create_observer
from calibration.samples import Samples
from calibration.table import CalibrationTable, Range
from compressor.artifacts.store import Artifact
from compressor.engine.contract import PassContext
from compressor.errors import NumericalError, RequirementError
from compressor.models.capabilities.valid_positions import ValidPositions
from compressor.models.quantized.quantization import Grid
from passes.common.device import device_of, tensors_from_batch
from passes.qat.step import QatConfig


def rounds_result(config: QatConfig, layer: nn.Module) -> bool:
    """Whether the layer's result must be rounded where no other layer does: ONNX Runtime would compute a convolution in float."""
    return config.target == "onnxruntime" and not isinstance(layer, nn.Linear)


def samples_of(config: QatConfig, context: PassContext) -> Samples:
    """The calibration samples."""
    calibration = config.calibration
    return Samples(
        context.data(calibration.data),
        count=calibration.num_samples,
        batch_size=calibration.batch_size,
        seed=calibration.seed,
        progress=lambda what, done, total: context.progress(what, done, total, {}),
    )


def inputs_of(samples: Samples, module: nn.Module, what: str) -> Iterator[dict[str, Tensor]]:
    """The inputs of all calibration samples, batch by batch."""
    for batch in samples.batches(what):
        tensors = tensors_from_batch(batch, device_of(module))
        yield {name: tensors[name] for name in samples.dataset.input_names}


def some_inputs(samples: Samples, module: nn.Module, count: int) -> dict[str, Tensor]:
    """The inputs of so many samples, evenly over those of calibration; if there are fewer, some twice."""
    places = samples.indices[np.arange(count) * len(samples) // count]
    batch = tensors_from_batch(samples.dataset.batch(places), device_of(module))
    return {name: batch[name] for name in samples.dataset.input_names}


def calibrated(
    config: QatConfig,
    positions: ValidPositions,
    folded: nn.Module,
    outputs: Mapping[str, bool],
    samples: Samples,
    parent: Artifact,
) -> CalibrationTable:
    """The ranges of all layers on the samples; of their results, where these may be rounded.

    Raises:
        NumericalError: activations are not finite; each such tensor is named.
    """
    calibration = config.calibration
    options: dict[str, Any] = (
        {"percentile": calibration.percentile} if calibration.observer == "percentile" else {}
    )
    ranges = TensorObservers(lambda: create_observer(calibration.observer, **options))

    def run() -> None:
        for inputs in inputs_of(samples, folded, "calibrate"):
            ranges.valid_positions = positions.mask(inputs)
            folded(**inputs)

    observe_layers(folded, outputs, run, ranges.observe)
    if ranges.not_finite:
        lines = "\n".join(f"    {name}: {why}" for name, why in ranges.not_finite.items())
        raise NumericalError(
            f"activations are not finite:\n{lines}",
            remedy="look for NaN in the samples, and for weights that overflow",
        )
    symmetric, from_zero = (
        Grid(bits=config.activation_bits),
        Grid(bits=config.activation_bits, nonnegative=True),
    )
    return CalibrationTable(
        model=parent.manifest.id,
        observer=calibration.observer,
        bits=config.activation_bits,
        smoothing=config.smoothing,
        num_samples=len(samples),
        samples_sha256=samples.digest,
        tensors={
            name: Range(
                values=one.count,
                minimum=float(one.minimum_C[0]),
                maximum=float(one.maximum_C[0]),
                bound=float(one.bound(symmetric.highest)[0]),
                bound_from_zero=float(one.bound(from_zero.highest)[0])
                if one.minimum_C[0] >= 0
                else None,
            )
            for name, one in ranges.observers.items()
        },
    )


def check_table(
    table: CalibrationTable, names: Collection[str], config: QatConfig, folded: nn.Module
) -> None:
    """Every layer was reached, by something else than a constant.

    Raises:
        RequirementError: names each that was not.
    """
    problems = []
    for name in names:
        found = table.tensors.get(f"{name}:input")
        if found is None:
            problems.append(f"{name}: no sample reaches it")
        elif found.minimum == found.maximum:
            problems.append(f"{name}: its input is always {found.minimum:g}")
        elif (
            rounds_result(config, folded.get_submodule(name))
            and f"{name}:output" not in table.tensors
        ):
            problems.append(
                f"{name}: the table has no range of its result, which the target {config.target} needs"
            )
    if problems:
        raise RequirementError(
            "no range can be found for the input of these layers:\n"
            + "\n".join(f"    {one}" for one in problems),
            remedy="calibrate on samples that use them, or name them in `exclude`",
        )
