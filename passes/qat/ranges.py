"""Activation ranges of layers, observed on calibration samples or read from a table."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from calibration.capture import TensorObservers, observe_layers
from calibration.grids import observed_range
from calibration.observers import create_observer
from calibration.samples import Samples
from calibration.table import CalibrationTable, read_table
from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import PassContext
from compressor.errors import NumericalError, RequirementError
from compressor.models.capabilities.valid_positions import ValidPositions
from passes.common.device import device_of, tensors_from_batch
from passes.qat.config import Calibration, QatConfig

_MOST_UNUSED = 0.25
"""Part of the layers that may be unused."""


def rounds_output(config: QatConfig, layer: nn.Module) -> bool:
    """Return True if the layer's output is rounded unless all its consumers round it.

    ONNX Runtime computes a convolution in float if its output is not quantized.
    """
    return config.target == "onnxruntime" and not isinstance(layer, nn.Linear)


def open_samples(calibration: Calibration, context: PassContext) -> Samples:
    """Return the calibration samples."""
    return Samples(
        context.data(calibration.data),
        count=calibration.num_samples,
        batch_size=calibration.batch_size,
        seed=calibration.seed,
        progress=lambda activity, done, total: context.progress(activity, done, total, {}),
    )


def iterate_inputs(
    samples: Samples, module: nn.Module, activity: str
) -> Iterator[dict[str, Tensor]]:
    """Yield the model inputs of all calibration samples, batch by batch."""
    for batch in samples.batches(activity):
        tensors = tensors_from_batch(batch, device_of(module))
        yield {name: tensors[name] for name in samples.dataset.input_names}


def sample_inputs(samples: Samples, module: nn.Module, count: int) -> dict[str, Tensor]:
    """Return the inputs of ``count`` samples, evenly spaced; some twice if there are fewer."""
    indices = samples.indices[np.arange(count) * len(samples) // count]
    batch = tensors_from_batch(samples.dataset.batch(indices), device_of(module))
    return {name: batch[name] for name in samples.dataset.input_names}


def load_table(
    config: QatConfig, parent: Artifact, context: PassContext
) -> CalibrationTable | None:
    """Return the calibration table that the config names; None if it names none.

    Raises:
        RequirementError: The step has no table, or one of another model or of other bits.
    """
    if config.calibration.table is None:
        return None
    return read_table(context.artifacts["table"].model, parent.manifest.id, config.activation_bits)


def observe_ranges(
    config: QatConfig,
    model_id: str,
    module: nn.Module,
    layers: Collection[str],
    positions: ValidPositions,
    samples: Samples,
) -> CalibrationTable:
    """Observe the inputs of layers, and the outputs that may be rounded, on all samples.

    Args:
        config: Observer and number of bits.
        model_id: Id of the parent artifact, which the table is bound to.
        module: The float model with folded normalizations, in eval mode.
        layers: Names of the layers.
        positions: Positions of the samples that are not padding.
        samples: Calibration samples.

    Raises:
        NumericalError: Activations are NaN or infinite; the message names each such tensor.
    """
    calibration = config.calibration
    options: dict[str, Any] = {}
    if calibration.observer == "percentile":
        options["percentile"] = calibration.percentile
    convolutions = {
        name for name in layers if not isinstance(module.get_submodule(name), nn.Linear)
    }
    observers = TensorObservers(
        lambda: create_observer(calibration.observer, **options), convolutions
    )

    def run() -> None:
        for inputs in iterate_inputs(samples, module, "calibrate"):
            observers.valid_positions = positions.mask(inputs)
            module(**inputs)

    with_output = {name: rounds_output(config, module.get_submodule(name)) for name in layers}
    observe_layers(module, with_output, run, observers.observe)
    if observers.not_finite:
        lines = "\n".join(f"    {name}: {error}" for name, error in observers.not_finite.items())
        raise NumericalError(
            f"activations are not finite:\n{lines}",
            remedy="look for NaN in the samples, and for weights that overflow",
        )
    return CalibrationTable(
        model=model_id,
        observer=calibration.observer,
        bits=config.activation_bits,
        smoothing=config.smoothing,
        num_samples=len(samples),
        samples_sha256=samples.digest,
        tensors={
            name: observed_range(observer, config.activation_bits)
            for name, observer in observers.observers.items()
        },
    )


def unused_layers(table: CalibrationTable, names: Sequence[str]) -> dict[str, str]:
    """Return the layers whose input is constant in all samples, and the reason.

    Some classes have such layers: the first attention of DETR's decoder reads zeros. If the first
    layer of the model is one of them, or many are, the samples are wrong, and none is returned.

    Args:
        table: the observed ranges.
        names: the layers in the order of computation.
    """
    unused = {
        name: f"its input is always {range_.minimum:g}"
        for name in names
        if (range_ := table.tensors.get(f"{name}:input")) is not None
        and range_.minimum == range_.maximum
    }
    are_few = len(unused) < _MOST_UNUSED * len(names) and names[0] not in unused
    return unused if are_few else {}


def check_table(
    table: CalibrationTable, names: Collection[str], config: QatConfig, module: nn.Module
) -> None:
    """Check that a table has a usable range for the input, and output, of every layer.

    Raises:
        RequirementError: Layers lack a range, or their input is constant; all are named.
    """
    problems = []
    for name in names:
        range_ = table.tensors.get(f"{name}:input")
        if range_ is None:
            problems.append(f"{name}: no sample reaches it")
        elif range_.minimum == range_.maximum:
            problems.append(f"{name}: its input is always {range_.minimum:g}")
        elif (
            rounds_output(config, module.get_submodule(name))
            and f"{name}:output" not in table.tensors
        ):
            problems.append(
                f"{name}: the table has no range of its output, which `target: {config.target}` "
                "needs"
            )
    if problems:
        raise RequirementError(
            "these layers have no usable range:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="calibrate on samples that use them, or list them in `ignore`",
        )
