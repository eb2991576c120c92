"""Quantize or convert one ONNX file with one peer, in the peers' own environment.

PEERS/bin/python -m benchmarks.onnx_in.peers TOOL MODEL.onnx CALIBRATION.npz OUT.onnx
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import version_converter

from benchmarks.onnx_in.model import feeds, open_model

Feeds = list[dict[str, np.ndarray[Any, Any]]]


def preprocess(model: Path, out: Path) -> Path:
    """Return the model after `quant_pre_process`, as the documentation of ONNX Runtime recommends.

    Without it, weights in nodes Constant are left out by most peers.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared.onnx")
    try:
        quant_pre_process(str(model), str(prepared))
    except Exception:  # noqa: BLE001 - its errors are bare exceptions
        print("without symbolic shape inference")
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    return prepared


def static(method: str) -> Callable[[Path, Path, Feeds], None]:
    """Return ONNX Runtime's static quantization, as it recommends for x86.

    QDQ, activations UINT8, weights INT8 per channel.
    """

    def quantize(model: Path, out: Path, samples: Feeds) -> None:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.remaining = iter(samples)

            def get_next(self) -> Any:
                return next(self.remaining, None)

        fields = {
            "quant_format": QuantFormat.QDQ,
            "per_channel": True,
            "activation_type": QuantType.QUInt8,
            "weight_type": QuantType.QInt8,
            "calibrate_method": getattr(CalibrationMethod, method),
        }
        prepared = str(preprocess(model, out))
        opsets = onnx.load(prepared, load_external_data=False).opset_import
        if (version := next(opset.version for opset in opsets if not opset.domain)) < 13:
            print(f"with opset 13 in place of {version}, for scales per channel")
            onnx.save(version_converter.convert_version(onnx.load(prepared), 13), prepared)
        try:
            quantize_static(prepared, str(out), Reader(), **fields)
        except ValueError as error:
            if "truth value of an array" not in str(error):
                raise
            # A defect of ONNX Runtime 1.32 where it adjusts weight scales to INT32 biases.
            print("without adjustment of weight scales to biases")
            extra = {"QDQDisableWeightAdjustForInt32Bias": True}
            quantize_static(prepared, str(out), Reader(), extra_options=extra, **fields)

    return quantize


def dynamic(model: Path, out: Path, samples: Feeds) -> None:  # noqa: ARG001
    """Quantize with ONNX Runtime: activation ranges at run time, weights per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = preprocess(model, out)
    quantize_dynamic(str(prepared), str(out), per_channel=True, weight_type=QuantType.QInt8)


def int4(model: Path, out: Path, samples: Feeds) -> None:  # noqa: ARG001
    """Quantize weights to INT4 with ONNX Runtime, with the config of its documentation."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(block_size=128, is_symmetric=True, accuracy_level=4)
    quantizer = MatMulNBitsQuantizer(onnx.load(preprocess(model, out)), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


def nncf_quantize(model: Path, out: Path, samples: Feeds) -> None:
    """Quantize with NNCF's post-training quantization and its defaults."""
    import nncf

    prepared = onnx.load(preprocess(model, out))
    onnx.save(nncf.quantize(prepared, nncf.Dataset(samples)), out)


def float16(model: Path, out: Path, samples: Feeds) -> None:  # noqa: ARG001
    """Convert to FP16 with onnxconverter-common; inputs and outputs stay FP32."""
    from onnxconverter_common.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(model), keep_io_types=True), out)


def mixed_precision(model: Path, out: Path, samples: Feeds) -> None:
    """Convert to FP16 where the outputs stay close, with onnxconverter-common's defaults."""
    from onnxconverter_common.auto_mixed_precision import auto_convert_mixed_precision

    converted = auto_convert_mixed_precision(
        onnx.load(model), samples[0], rtol=0.01, atol=0.001, keep_io_types=True
    )
    onnx.save(converted, out)


PEERS: dict[str, Callable[[Path, Path, Feeds], None]] = {
    "static MinMax": static("MinMax"),
    "static Percentile": static("Percentile"),
    "static Entropy": static("Entropy"),
    "dynamic": dynamic,
    "NNCF": nncf_quantize,
    "MatMulNBits int4": int4,
    "float16": float16,
    "auto mixed precision": mixed_precision,
}


def main() -> None:
    """Run one peer."""
    tool, model, samples, out = sys.argv[1], *map(Path, sys.argv[2:])
    with np.load(samples) as arrays:
        own = feeds(open_model(model, threads=1), {name: arrays[name] for name in arrays})
    PEERS[tool](model, out, own)


if __name__ == "__main__":
    main()
