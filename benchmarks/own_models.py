"""Take models of timm and torchvision through every pass that applies, and print a table.

    python -m benchmarks.own_models [--only timm:vit_tiny_patch16_224] [--steps qat] [--work FOLDER]

Needs `timm` and `torchvision`. Weights are random; batch norms have statistics of random images.
Small images keep it quick. Each exported graph is compared with the library's own module, beside
the parity check of `export-onnx`, so a step that ends well is right. Results are kept in FOLDER as
they come, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import yaml
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.intake.invocation import Crashed, attempt, invoke, outputs_of
from compressor.models.families.module.interface import tensors_in
from compressor.models.families.module.libraries import LIBRARIES

SAMPLES, CLASSES = 32, 16
_TOLERANCE = 1e-3
CALIBRATION = {"data": "samples", "num_samples": 8, "batch_size": 4}
PARITY = {"data": "samples", "num_samples": 4}
TRAINING = {"steps": 2, "batch_size": 4}
RECOVERY = {"train": "samples", "validation": None, "training": TRAINING}
EXPORT = {"type": "export-onnx", "parity": PARITY}


@dataclass(frozen=True)
class Case:
    """One model of a library, with images of a size that it permits."""

    library: str
    name: str
    shape: tuple[int, ...] = (3, 64, 64)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("image",)
    is_classifier: bool = True

    @property
    def title(self) -> str:
        """Library and model."""
        return f"{self.library}:{self.name}"

    @property
    def all_arguments(self) -> dict[str, Any]:
        """The arguments, with few classes for classifiers."""
        return ({"num_classes": CLASSES} if self.is_classifier else {}) | dict(self.arguments)


def _timm(name: str, size: int = 64, **others: Any) -> Case:
    return Case("timm", name, (3, size, size), **others)


def _torchvision(name: str, *shape: int, **others: Any) -> Case:
    return Case("torchvision", name, shape or (3, 64, 64), **others)


_SIZE = {"img_size": 64}
_NO_HEAD = {"is_classifier": False}
_NO_BACKBONE = {"num_classes": 5, "weights_backbone": None}
CASES = (
    _timm("mobilenetv3_small_100"),
    _timm("efficientnet_b0"),
    _timm("convnext_atto"),
    _timm("vit_tiny_patch16_224", arguments=_SIZE),
    _timm("swin_tiny_patch4_window7_224", 56, arguments={"img_size": 56}),
    _timm("resnest14d"),
    _timm("regnety_002"),
    _timm("nf_resnet26"),
    _timm("mixer_s32_224", arguments=_SIZE),
    _timm("efficientvit_b0"),
    _timm("mobilevit_xxs"),
    _timm("resnet18", arguments={"features_only": True}, **_NO_HEAD),
    _timm("ghostnet_100"),
    _timm("edgenext_xx_small"),
    _timm("repvit_m0_9"),
    _timm("fastvit_t8"),
    _timm("tiny_vit_5m_224"),
    _timm("maxvit_rmlp_pico_rw_256", arguments=_SIZE),
    _timm("coatnet_nano_rw_224", arguments=_SIZE),
    _timm("vit_tiny_r_s16_p8_224", arguments=_SIZE),
    _timm("xcit_nano_12_p16_224"),
    _timm("pvt_v2_b0"),
    _timm("levit_128s", 224),
    _timm(
        "beit_base_patch16_224", arguments={**_SIZE, "depth": 2, "embed_dim": 96, "num_heads": 4}
    ),
    _timm("eva02_tiny_patch14_224", 56, arguments={"img_size": 56}),
    _timm("gmlp_s16_224", arguments=_SIZE),
    _timm("densenet121"),
    _timm("vgg11_bn"),
    _timm("hrnet_w18_small"),
    _timm("vit_small_patch16_dinov3", arguments={"depth": 2}),
    _torchvision("resnet18"),
    _torchvision("mobilenet_v3_small"),
    _torchvision("vit_b_16", 3, 32, 32, arguments={"image_size": 32}),
    _torchvision("swin_t"),
    _torchvision("convnext_tiny"),
    _torchvision("shufflenet_v2_x0_5"),
    _torchvision("densenet121"),
    _torchvision("vgg11_bn"),
    _torchvision("efficientnet_b0"),
    _torchvision("regnet_y_400mf"),
    _torchvision("squeezenet1_1"),
    _torchvision("googlenet", arguments={"aux_logits": False, "init_weights": False}),
    _torchvision("inception_v3", 3, 96, 96, arguments={"init_weights": False}),
    _torchvision("deeplabv3_mobilenet_v3_large", **_NO_HEAD),
    _torchvision("lraspp_mobilenet_v3_large", **_NO_HEAD),
    _torchvision("ssdlite320_mobilenet_v3_large", 3, 320, 320, **_NO_HEAD),
    _torchvision("fasterrcnn_mobilenet_v3_large_320_fpn", 3, 320, 320, **_NO_HEAD),
    _torchvision("raft_small", 3, 128, 128, inputs=("image1", "image2"), **_NO_HEAD),
    _torchvision("retinanet_resnet50_fpn", 3, 320, 320, **_NO_HEAD),
    _torchvision("fcn_resnet50", **_NO_HEAD),
    _torchvision("r3d_18", 3, 4, 32, 32),
    _torchvision("mvit_v2_s", 3, 16, 224, 224),
)


def build(case: Case) -> nn.Module:
    """Return the library's module with random weights and statistics of random images."""
    torch.manual_seed(0)
    module = LIBRARIES[case.library].create(case.name, case.all_arguments)
    for name, parameter in module.named_parameters():
        if not parameter.any() and name.endswith("weight"):
            nn.init.normal_(parameter, std=0.02)  # some heads start at zero, and hide differences
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.5
    if norms and not _is_detector(module):
        with torch.no_grad():
            for _ in range(4):
                module.train()(*samples(case, 8))
    return module.eval()


def _is_detector(module: nn.Module) -> bool:
    return hasattr(module, "transform") and hasattr(module, "backbone")


def samples(case: Case, count: int) -> list[Tensor]:
    """Return random images for each input."""
    return [torch.randn(count, *case.shape) for _ in case.inputs]


def prepare(case: Case, folder: Path) -> None:
    """Write the weights, the samples and what the library computes for them."""
    module = build(case)
    state = {name: value.contiguous().clone() for name, value in module.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    batch = samples(case, SAMPLES)
    arrays = {name: value.numpy() for name, value in zip(case.inputs, batch, strict=True)}
    labels = {"label": np.arange(SAMPLES) % CLASSES} if case.is_classifier else {}
    np.savez(folder / "samples.npz", **arrays, **labels)
    if not _is_detector(module):
        with torch.no_grad():
            expected = [value.numpy() for _, value in tensors_in(module(*batch))]
        np.savez(folder / "expected.npz", *expected)


def run_pipeline(case: Case, folder: Path, name: str, *steps: Mapping[str, Any]) -> None:
    """Run steps one after another on the model."""
    document = {
        "version": 1,
        "name": name,
        "model": {
            case.library: case.name,
            "arguments": case.all_arguments,
            "weights": "weights.safetensors",
            "inputs": {name: {"shape": ["batch", *case.shape]} for name in case.inputs},
        },
        "data": {"samples": {"source": "arrays", "path": "samples.npz"}},
        "passes": list(steps),
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    command = "run" if steps else "plan"
    invoke(command, file, "--output-dir", folder / "artifacts")


def differences(folder: Path) -> float:
    """Return the largest difference of the newest graph's outputs from those of the library.

    It is relative to the largest magnitude of each output.
    """
    graph = outputs_of(folder, "export-onnx") / "model" / "model.onnx"
    session = onnxruntime.InferenceSession(graph)
    arrays = np.load(folder / "samples.npz")
    actual = session.run(None, {value.name: arrays[value.name] for value in session.get_inputs()})
    expected = np.load(folder / "expected.npz")
    pairs = zip((expected[name] for name in expected.files), actual, strict=True)
    return max(float(abs(a - b).max() / abs(a).max()) for a, b in pairs)


def export_onnx(case: Case, folder: Path) -> str:
    """Export the model."""
    run_pipeline(case, folder, "export", EXPORT)
    if (difference := differences(folder)) > _TOLERANCE:
        raise Crashed(f"the graph differs from the library's module by {difference:.2g}")
    return "right"


def qat(case: Case, folder: Path) -> str:
    """Quantize to INT8 and export."""
    run_pipeline(case, folder, "qat", {"type": "qat", "calibration": CALIBRATION}, EXPORT)
    return f"differs by {differences(folder):.2f}"


def fine_tuning(case: Case, folder: Path) -> str:
    """Quantize to INT8, train, and export."""
    step = {"type": "qat", "calibration": CALIBRATION, "fine_tuning": RECOVERY}
    run_pipeline(case, folder, "tuned", step, EXPORT)
    return "right"


def prune(case: Case, folder: Path) -> str:
    """Prune to 80 % of the parameters, train where there are classes, and export."""
    step = {"type": "prune", "target": {"params": 0.8}, "importance": "magnitude", "repair": False}
    if case.is_classifier:
        step["recovery"] = RECOVERY
    run_pipeline(case, folder, "prune", step, EXPORT)
    return "right"


def distill(case: Case, folder: Path) -> str:
    """Distil the model into another one of its kind, and export."""
    student = {"config": {"arguments": case.all_arguments}}
    step = {"type": "distill", "student": student, **RECOVERY}
    run_pipeline(case, folder, "distill", step, EXPORT)
    return "right"


def awq(case: Case, folder: Path) -> str:
    """Quantize the weights of linear layers to INT4."""
    step = {
        "type": "awq",
        "calibration": CALIBRATION,
        "group_size": 16,
        "format": "compressed-tensors",
    }
    run_pipeline(case, folder, "awq", step)
    return "right"


STEPS: dict[str, Callable[[Case, Path], str]] = {
    "plan": lambda case, folder: run_pipeline(case, folder, "plan") or "accepted",
    "export-onnx": export_onnx,
    "qat": qat,
    "qat, trained": fine_tuning,
    "prune": prune,
    "distill": distill,
    "awq": awq,
}


def take(case: Case, work: Path, steps: list[str]) -> dict[str, dict[str, str]]:
    """Return the outcome of each step on a model."""
    folder = work / case.title.replace(":", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prepare(case, folder)
    results = {}
    for name in steps:
        results[name] = attempt(lambda name=name: STEPS[name](case, folder))
        sys.stderr.write(f"{case.title} {name}: {results[name]}\n")
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    return results


def print_table(results: Mapping[str, Any], selected: list[Case]) -> None:
    """Print a row for each model, then the reasons of what was refused."""
    table = Table("model", *STEPS)
    marks = {"ok": "✓", "refused": "refused", "crashed": "CRASHED"}
    for case in selected:
        row = results.get(case.title, {})
        table.add_row(case.title, *(marks.get(row.get(n, {}).get("outcome"), "") for n in STEPS))
    console = Console(width=160)
    console.print(table)
    for case in selected:
        for name, cell in results.get(case.title, {}).items():
            if cell["outcome"] != "ok":
                console.print(f"{case.title} {name}: {cell['outcome']}: {cell['detail']}")


def main() -> None:
    """Run the models that are not done yet, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--steps", nargs="*", default=list(STEPS), choices=STEPS)
    parser.add_argument("--work", type=Path, default=Path("own-models-work"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    selected = [case for case in CASES if not options.only or case.title in options.only]
    for case in selected:
        done = results.get(case.title, {})
        if missing := [step for step in options.steps if step not in done]:
            results[case.title] = {**done, **take(case, options.work, missing)}
            file.write_text(json.dumps(results, indent=1))
    print_table(results, selected)


if __name__ == "__main__":
    main()
