"""Compare `prune` with Torch-Pruning on handwritten digits: accuracy after the same training.

    python -m benchmarks.prune_images [--only torchvision:resnet18] [--macs 0.5] [--output FILE]

Needs `timm`, `torchvision`, `torch-pruning` and `scikit-learn`, whose 1,797 digits of 8 x 8 pixels
are enlarged to 32 x 32. A model is trained once. Both sides then cut it to a share of its
multiply-accumulates by the Taylor importance of the same samples, each with its defaults, and train
it for the same steps in the same order. Torch-Pruning takes one ratio for all layers, so the ratio
that reaches the share is searched.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.intake.invocation import invoke, outputs_of
from compressor.models.capabilities.flop_counting import count_flops
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.module.libraries import LIBRARIES

MODELS = ("torchvision:resnet18",)
"""Models that learn the digits in so few steps; MobileNetV3 and RegNetY do not."""
CLASSES, SIZE, TEST = 10, 32, 500
_BATCH, _CALIBRATION = 32, 128
_SEARCH_STEPS = 8


class ByName(nn.Module):
    """A module of a library whose `forward` returns logits by name, as ours do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the logits."""
        return {"logits": self.module(image)}


def digits() -> tuple[Tensor, Tensor]:
    """Return pictures [N, 3, 32, 32] and labels [N] in random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.tensor(data.images[order], dtype=torch.float32)[:, None] / 8 - 1
    images = functional.interpolate(images, SIZE, mode="bilinear").expand(-1, 3, -1, -1)
    return images.contiguous(), torch.tensor(data.target[order])


def train(module: nn.Module, images: Tensor, labels: Tensor, steps: int, rate: float) -> None:
    """Train with AdamW, whose learning rate falls to zero, on the samples after the test set."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    module.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        batch = torch.randint(TEST, len(labels), (_BATCH,))
        loss = functional.cross_entropy(module(image=images[batch])["logits"], labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()


@torch.no_grad()
def accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of the test set that is recognized."""
    answers = torch.cat(
        [module(image=part)["logits"].argmax(-1) for part in images[:TEST].split(50)]
    )
    return round(float((answers == labels[:TEST]).float().mean()), 3)


def macs(module: nn.Module) -> int:
    """Return the multiply-accumulates of a picture."""
    with count_flops(module) as counter, torch.no_grad():
        module(image=torch.zeros(1, 3, SIZE, SIZE))
    return counter.get_total_flops() // 2


def cut_ours(title: str, whole: ByName, share: float, images: Tensor, labels: Tensor) -> nn.Module:
    """Return the module that a `prune` step leaves."""
    library, name = title.split(":")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        state = {key: value.contiguous() for key, value in whole.module.state_dict().items()}
        save_file(state, folder / "weights.safetensors")
        rows = slice(TEST, TEST + _CALIBRATION)
        np.savez(folder / "digits.npz", image=images[rows].numpy(), label=labels[rows].numpy())
        step = {
            "type": "prune",
            "target": {"macs": share},
            "calibration": "digits",
            "num_samples": _CALIBRATION,
        }
        document = {
            "version": 1,
            "name": "digits",
            "model": {
                library: name,
                "arguments": {"num_classes": CLASSES},
                "weights": "weights.safetensors",
                "inputs": {"image": {"shape": ["batch", 3, SIZE, SIZE]}},
            },
            "data": {"digits": {"source": "arrays", "path": "digits.npz"}},
            "passes": [step],
        }
        (folder / "pipeline.yaml").write_text(yaml.safe_dump(document))
        invoke("run", folder / "pipeline.yaml", "--output-dir", folder / "artifacts")
        return load_module(outputs_of(folder, "prune") / "model")


def cut_torch_pruning(
    _title: str, whole: ByName, share: float, images: Tensor, labels: Tensor
) -> nn.Module:
    """Return the module at the ratio of Torch-Pruning that reaches the share most closely."""
    rows = slice(TEST, TEST + _CALIBRATION)
    low, high, target = 0.0, 1.0, share * macs(whole)
    best, distance = whole, float("inf")
    for _ in range(_SEARCH_STEPS):
        ratio = (low + high) / 2
        smaller = _cut_to_ratio(copy.deepcopy(whole), ratio, images[rows], labels[rows])
        left = macs(smaller)
        if abs(left - target) < distance:
            best, distance = smaller, abs(left - target)
        low, high = (ratio, high) if left > target else (low, ratio)
    return best


def _cut_to_ratio(module: ByName, ratio: float, images: Tensor, labels: Tensor) -> ByName:
    import torch_pruning

    classes = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and layer.out_features == CLASSES
    ]
    pruner = torch_pruning.pruner.BasePruner(
        module,
        {"image": images[:1]},
        importance=torch_pruning.importance.GroupTaylorImportance(),
        pruning_ratio=ratio,
        global_pruning=True,
        round_to=8,
        ignored_layers=classes,
        forward_fn=lambda model, inputs: model(**inputs)["logits"],
    )
    functional.cross_entropy(module(image=images)["logits"], labels).backward()
    pruner.step()
    module.zero_grad()
    return module


def measure(title: str, share: float, training: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yield a row for the whole model and for each side."""
    images, labels = digits()
    library, name = title.split(":")
    torch.manual_seed(0)
    whole = ByName(LIBRARIES[library].create(name, {"num_classes": CLASSES}))
    for layer in whole.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1  # some models average over more steps than these
    train(whole, images, labels, training["steps"], 1e-3)
    found = accuracy(whole, images, labels)
    yield {"model": title, "side": "whole", "macs": 1.0, "recovered": found}
    for side, cut in (("ours", cut_ours), ("Torch-Pruning", cut_torch_pruning)):
        row: dict[str, Any] = {"model": title, "side": side}
        try:
            smaller = cut(title, copy.deepcopy(whole), share, images, labels)
            row["macs"] = round(macs(smaller) / macs(whole), 3)
            row["cut"] = accuracy(smaller.eval(), images, labels)
            train(smaller, images, labels, training["recovery"], 5e-4)
            row["recovered"] = accuracy(smaller, images, labels)
        except Exception as error:  # noqa: BLE001  a side that fails is a result
            row["fails"] = f"{type(error).__name__}: {str(error)[:200]}"
        yield row


def main() -> None:
    """Measure the models and print a row for each side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--recovery", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("prune_images.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    training = {"steps": options.steps, "recovery": options.recovery}
    with options.output.open("a", encoding="utf-8") as file:
        for title in options.only or MODELS:
            for row in measure(title, options.macs, training):
                print(json.dumps(row), flush=True)
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
