"""INT8 by this tool and by its peers: the same model, calibration samples, test set and machine, in one run.

    python benchmarks/int8.py PIPELINE MODEL [--calibration train] [--num-samples 240] [--observers mse …] [--qat FIELDS] …

PIPELINE says what data there are and how accuracy is measured; MODEL is the folder of a float torch model. Of the peers,
`quantize_static` comes with ONNX Runtime; `pip install --no-deps nncf tabulate scipy` and `pip install --no-deps nvidia-modelopt
onnx_graphsurgeon nvidia-ml-py onnxslim lief` get the others, in an environment of their own. A peer that fails is told and left
out. Latency is in turns, the median and range of the ratios to float.
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
from latency import in_turns

from calibration.samples import Samples
from compressor.artifacts.store import Artifact, open_artifact
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.runtimes.onnxruntime.kernels import kernels_of
from compressor.runtimes.session import fitted, open_session

Feeds = list[dict[str, np.ndarray[Any, Any]]]
OBSERVERS = ("min-max", "moving-average", "percentile", "entropy", "mse")


def static(method: str) -> Callable[[Path, Path, Feeds], None]:
    """ONNX Runtime's own, with UINT8 activations and INT8 weights by channel, as it recommends for x86."""

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
                self.left = iter(feeds)

            def get_next(self) -> Any:
                return next(self.left, None)

        prepared = out.with_name("prepared.onnx")
        quant_pre_process(
            str(model), str(prepared), skip_symbolic_shape=True
        )  # which fails on dynamic lengths
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
    """ONNX Runtime's own, which finds the range of each activation while it runs; weights by channel, tables too."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(model), str(out), per_channel=True, weight_type=QuantType.QInt8)


def nncf_quantize(model: Path, out: Path, feeds: Feeds) -> None:
    """NNCF's post-training quantization with its defaults."""
    import nncf

    onnx.save(nncf.quantize(onnx.load(model), nncf.Dataset(feeds), subset_size=len(feeds)), out)


def modelopt(method: str) -> Callable[[Path, Path, Feeds], None]:
    """NVIDIA ModelOpt's ONNX quantization; made for TensorRT."""

    def quantize(model: Path, out: Path, feeds: Feeds) -> None:
        from modelopt.onnx.quantization import quantize as quantized

        data = {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}
        quantized(
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
    """The rows of a pipeline's ladder."""
    file.write_text(json.dumps(tree, indent=1), encoding="utf-8")
    command = [sys.executable, "-m", "cli", "run", str(file), "-o", str(store), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["ladder"]["rows"]
    return rows


def feeds_of(samples: Samples, float_model: Path) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """The calibration samples one by one, as the float graph takes them."""

    with open_session("onnx", float_model, threads=2) as session:
        for batch in samples.batches("feeds"):
            whole = fitted(batch, session.inputs)
            for index in range(len(next(iter(whole.values())))):
                yield {name: array[index : index + 1] for name, array in whole.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", default="train")
    parser.add_argument("--num-samples", type=int, default=240)
    parser.add_argument("--observers", nargs="+", default=list(OBSERVERS), choices=OBSERVERS)
    parser.add_argument(
        "--qat", type=json.loads, default={}, help="more fields of the qat steps, as JSON"
    )
    parser.add_argument(
        "--targets", nargs="+", default=["onnxruntime"], choices=["onnxruntime", "tensorrt"]
    )
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--store", type=Path, default=Path("artifacts/benchmark-int8"))
    options = parser.parse_args()
    store = options.store.resolve()
    store.mkdir(parents=True, exist_ok=True)
    tree = yaml.safe_load(options.pipeline.read_text(encoding="utf-8"))
    tree |= {"name": "int8", "model": {"path": str(options.model.resolve())}, "gates": []}
    file = (
        options.pipeline.resolve().parent / f".{options.pipeline.stem}-int8.json"
    )  # beside it: paths in it are relative
    passes: list[dict[str, Any]] = [{"type": "export-onnx", "name": "float", "from": "source"}]
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
            passes.append({"type": "qat", "name": name, "from": "source"} | fields)
            passes.append({"type": "export-onnx", "name": f"{name}-onnx"})
    try:
        rows = run(tree | {"passes": passes}, file, store)
        source, whole = (open_artifact(store / row["name"]) for row in rows[:2])
        found: list[tuple[str, dict[str, Any], Artifact]] = [("float", rows[1], whole)]
        found += [
            (row["step"], row, open_artifact(store / row["name"]))
            for row in rows[2:]
            if row["step"].endswith("-onnx")
        ]
        pipeline = load_pipeline(options.pipeline)
        chosen = pipeline.data[options.calibration]
        dataset = chosen.source.load(chosen.config, SourceContext(pipeline.base))
        feeds = list(
            feeds_of(Samples(dataset, count=options.num_samples, batch_size=24), whole.model)
        )
        evaluate = tree["evaluate"]
        if "reference" in evaluate["accuracy"]:
            evaluate = evaluate | {
                "accuracy": evaluate["accuracy"] | {"reference": str(source.path)}
            }
        for peer in options.peers:
            folder = store / "peers" / peer.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            try:
                PEERS[peer](whole.model / "model.onnx", folder / "model.onnx", feeds)
                row = run(
                    tree | {"model": {"path": str(folder)}, "evaluate": evaluate, "passes": []},
                    file,
                    store,
                )[-1]
            except Exception as error:  # noqa: BLE001
                print(
                    f"{peer}: {type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}"
                )
                continue
            found.append((peer, row, open_artifact(store / row["name"])))
    finally:
        file.unlink(missing_ok=True)
    ratios = in_turns(
        [one for *_, one in found], options.pipeline, options.rounds, 20, options.threads
    )
    size = found[0][1]["metrics"]["size_bytes"]["value"]
    for (name, row, artifact), ratio in zip(found, ratios, strict=True):
        figures = {metric: one["value"] for metric, one in row["metrics"].items()}
        told = "  ".join(
            f"{metric} {figures[metric]:.4f}"
            for metric in ("top1", "mrr", "cosine", "agreement", "kl")
            if metric in figures
        )
        kernels = kernels_of(artifact.model)
        print(
            f"{name:32} {told}  size ×{figures['size_bytes'] / size:.3f}  latency ×{ratio.median:.3f} "
            f"({ratio.least:.3f}–{ratio.most:.3f})  {sum(kernels.integer.values())} integer, {len(kernels.floating)} float"
        )


if __name__ == "__main__":
    main()
