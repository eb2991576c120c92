"""Compare INT8 with peers: the same model, calibration samples, test set and machine, in one run.

    python benchmarks/int8.py PIPELINE MODEL [--calibration train] [--num-samples 240] \
        [--observers mse …] [--qat FIELDS] …

PIPELINE defines the data and the accuracy metrics; MODEL is the folder of a float torch model. Of
the peers, `quantize_static` is part of ONNX Runtime; `pip install --no-deps nncf tabulate scipy`
and `pip install --no-deps nvidia-modelopt onnx_graphsurgeon nvidia-ml-py onnxslim lief` install the
others, in an environment of their own. A peer that fails is reported and skipped. Latency is
measured in interleaved rounds: the median and range of the ratios to float.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from latency import Rounds, measure_interleaved

from calibration.samples import Samples
from compressor.artifacts.artifact import Artifact, open_artifact
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.integer_kernels import inspect_kernels
from compressor.runtimes.session import match_inputs

Feeds = list[dict[str, np.ndarray[Any, Any]]]
ACCURACY_METRICS = ("top1", "mrr", "cosine", "agreement", "kl")
OBSERVERS = ("min-max", "moving-average", "percentile", "entropy", "mse")


def static(method: str) -> Callable[[Path, Path, Feeds], None]:
    """Return ONNX Runtime's static quantization, as it recommends for x86.

    Activations are UINT8, weights INT8 per channel.
    """

    def quantize(model: Path, out: Path, feeds: Feeds) -> None:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.remaining = iter(feeds)

            def get_next(self) -> Any:
                return next(self.remaining, None)

        prepared = out.with_name("prepared.onnx")
        # Symbolic shape inference fails on dynamic lengths.
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, method),
        )
        prepared.unlink()

    return quantize


def dynamic(model: Path, out: Path, feeds: Feeds) -> None:  # noqa: ARG001
    """Quantize with ONNX Runtime: activation ranges at run time, weights and tables per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(model), str(out), per_channel=True, weight_type=QuantType.QInt8)


def nncf_quantize(model: Path, out: Path, feeds: Feeds) -> None:
    """Quantize with NNCF's post-training quantization and its defaults."""
    import nncf

    onnx.save(nncf.quantize(onnx.load(model), nncf.Dataset(feeds), subset_size=len(feeds)), out)


def modelopt(method: str) -> Callable[[Path, Path, Feeds], None]:
    """Return NVIDIA ModelOpt's ONNX quantization, made for TensorRT."""

    def quantize(model: Path, out: Path, feeds: Feeds) -> None:
        from modelopt.onnx.quantization import quantize as modelopt_quantize

        data = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        modelopt_quantize(
            str(model),
            quantize_mode="int8",
            calibration_data=data,
            calibration_method=method,
            output_path=str(out),
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
        )

    return quantize


PEERS: dict[str, Callable[[Path, Path, Feeds], None]] = {
    "quantize_static MinMax": static("MinMax"),
    "quantize_static Entropy": static("Entropy"),
    "quantize_static Percentile": static("Percentile"),
    "quantize_dynamic": dynamic,
    "NNCF": nncf_quantize,
    "ModelOpt max": modelopt("max"),
    "ModelOpt entropy": modelopt("entropy"),
}


def run(tree: dict[str, Any], file: Path, store: Path) -> list[dict[str, Any]]:
    """Run a pipeline and return the rows of its ladder."""
    file.write_text(json.dumps(tree, indent=1), encoding="utf-8")
    command = [sys.executable, "-m", "cli", "run", str(file), "-o", str(store), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["ladder"]["rows"]
    return rows


def calibration_feeds(
    samples: Samples, float_model: Path
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Yield the calibration samples one by one, as inputs of the float graph."""
    with open_session("onnx", float_model, threads=2) as session:
        for batch in samples.batches("feeds"):
            feeds = match_inputs(batch, session.inputs)
            for index in range(len(next(iter(feeds.values())))):
                yield {name: array[index : index + 1] for name, array in feeds.items()}


def parse_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", default="train", help="data set under `data:`")
    parser.add_argument("--num-samples", type=int, default=240)
    parser.add_argument("--observers", nargs="+", default=list(OBSERVERS), choices=OBSERVERS)
    parser.add_argument(
        "--qat", type=json.loads, default={}, help="additional fields of the qat steps, as JSON"
    )
    targets = ["onnxruntime", "tensorrt"]
    parser.add_argument("--targets", nargs="+", default=["onnxruntime"], choices=targets)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--store", type=Path, default=Path("artifacts/benchmark-int8"))
    return parser.parse_args()


def qat_steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the float export, and a qat step with its export for each target and observer."""
    steps: list[dict[str, Any]] = [{"type": "export-onnx", "name": "float", "from": "source"}]
    for target in options.targets:
        for observer in options.observers:
            name = f"{observer}-{target}"
            calibration = {
                "data": options.calibration,
                "num_samples": options.num_samples,
                "batch_size": 24,
                "observer": observer,
            }
            fields = {"calibration": calibration, "target": target} | options.qat
            steps.append({"type": "qat", "name": name, "from": "source"} | fields)
            steps.append({"type": "export-onnx", "name": f"{name}-onnx"})
    return steps


class Benchmark:
    """Quantized models of all tools, with their rows of the ladder."""

    def __init__(self, options: argparse.Namespace, file: Path) -> None:
        self.options, self.file = options, file
        self.store: Path = options.store.resolve()
        self.store.mkdir(parents=True, exist_ok=True)
        self.tree = yaml.safe_load(options.pipeline.read_text(encoding="utf-8"))
        model = {"path": str(options.model.resolve())}
        self.tree |= {"name": "int8", "model": model, "gates": []}
        self.models: list[tuple[str, dict[str, Any], Artifact]] = []
        """Name, row of the ladder, artifact; the float export first."""

    def quantize_with_qat(self) -> Artifact:
        """Add the float export and the exports of all qat steps; return the source's artifact."""
        rows = run(self.tree | {"passes": qat_steps(self.options)}, self.file, self.store)
        exports = [row for row in rows if row["step"] == "float" or row["step"].endswith("-onnx")]
        self.models = [(row["step"], row, self.artifact(row)) for row in exports]
        return self.artifact(rows[0])

    def quantize_with_peers(self, source: Artifact) -> None:
        """Add the models of the peers; report and skip a peer that fails."""
        float_model = self.models[0][2].model
        feeds = self.feeds(float_model)
        evaluate = self.tree["evaluate"]
        if "reference" in evaluate["accuracy"]:
            reference = {"reference": str(source.path)}
            evaluate = evaluate | {"accuracy": evaluate["accuracy"] | reference}
        for peer in self.options.peers:
            folder = self.store / "peers" / peer.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            model = {"model": {"path": str(folder)}, "evaluate": evaluate, "passes": []}
            try:
                PEERS[peer](float_model / "model.onnx", folder / "model.onnx", feeds)
                row = run(self.tree | model, self.file, self.store)[-1]
            except Exception as error:  # noqa: BLE001
                lines = str(error).strip().splitlines() or [""]
                print(f"{peer}: {type(error).__name__}: {lines[-1]}")
                continue
            self.models.append((peer, row, self.artifact(row)))

    def feeds(self, float_model: Path) -> Feeds:
        """Return the calibration samples."""
        pipeline = load_pipeline(self.options.pipeline)
        data = pipeline.data[self.options.calibration]
        dataset = data.source.load(data.config, SourceContext(pipeline.base))
        samples = Samples(dataset, count=self.options.num_samples, batch_size=24)
        return list(calibration_feeds(samples, float_model))

    def artifact(self, row: dict[str, Any]) -> Artifact:
        """Return the artifact of a row."""
        return open_artifact(self.store / row["name"])

    def print_table(self) -> None:
        """Measure latency in interleaved rounds and print one line per model."""
        options = self.options
        artifacts = [artifact for *_, artifact in self.models]
        ratios = measure_interleaved(
            artifacts, options.pipeline, Rounds(options.rounds, repeats=20, threads=options.threads)
        )
        float_size = self.models[0][1]["metrics"]["size_bytes"]["value"]
        for (name, row, artifact), ratio in zip(self.models, ratios, strict=True):
            values = {metric: record["value"] for metric, record in row["metrics"].items()}
            accuracy = "  ".join(f"{m} {values[m]:.4f}" for m in ACCURACY_METRICS if m in values)
            kernels = inspect_kernels(artifact.model)
            print(
                f"{name:32} {accuracy}  size ×{values['size_bytes'] / float_size:.3f}  "
                f"latency ×{ratio.median:.3f} ({ratio.least:.3f}–{ratio.most:.3f})  "
                f"{sum(kernels.integer.values())} integer, {len(kernels.floating)} float"
            )


def main() -> None:
    """Print the table."""
    options = parse_options()
    # Beside the pipeline, because its paths are relative.
    file = options.pipeline.resolve().parent / f".{options.pipeline.stem}-int8.json"
    benchmark = Benchmark(options, file)
    try:
        benchmark.quantize_with_peers(benchmark.quantize_with_qat())
    finally:
        file.unlink(missing_ok=True)
    benchmark.print_table()


if __name__ == "__main__":
    main()
