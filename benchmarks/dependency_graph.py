"""Compare our discovered axes with the dependency graph of Torch-Pruning, on models of libraries.

    python -m benchmarks.dependency_graph [--only torchvision:resnet18] [--output rows.jsonl]

Needs `torchvision`, `timm` and `torch-pruning`. Both sides get the same module with random weights
and no hints about it, and remove half of the units of everything that they can cut, apart from the
classes. A cut is right if the smaller model runs and computes what the whole model does with the
columns that read removed units at zero. Times are for finding the groups and for cutting.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.discovered_axes.verification import masked, removed_part
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.capabilities.unit_removal import remove_units
from compressor.models.checkpoint.weights import assign_weights, weights_on_meta
from compressor.models.families.module.config import ModuleConfig
from compressor.models.families.module.family import Module
from compressor.models.torchvision_operators import declare_missing_operators

MODELS = (
    *("alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121"),
    *("squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5"),
    *("efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "vit_b_32", "swin_t"),
)
TIMM_MODELS = (
    *("mobilenetv3_small_100", "ghostnet_100", "repvgg_a0", "resnest14d", "seresnext26d_32x4d"),
    *("mobileone_s0", "convnext_atto", "vit_tiny_patch16_224", "mixer_s32_224", "resmlp_12_224"),
    *("mobilevit_xxs", "dla34", "cspresnet50", "poolformer_s12", "tf_efficientnet_lite0"),
    *("hrnet_w18_small", "efficientformer_l1", "levit_128s", "nf_resnet26", "vovnet39a"),
)
_IMAGE = (2, 3, 224, 224)
_TOLERANCE = 1e-3


def main() -> None:
    """Measure the models and print a row for each side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--output", type=Path, default=Path("dependency_graph.jsonl"))
    arguments = parser.parse_args()
    declare_missing_operators()
    names = [f"torchvision:{name}" for name in MODELS] + [f"timm:{name}" for name in TIMM_MODELS]
    with arguments.output.open("a", encoding="utf-8") as file:
        for name in arguments.only or names:
            for side, measure in (("ours", _cut_ours), ("torch-pruning", _cut_torch_pruning)):
                row = {"model": name, "side": side, **_measured(measure, name)}
                print(json.dumps(row), flush=True)
                file.write(json.dumps(row) + "\n")


def _measured(measure: Any, name: str) -> dict[str, Any]:
    family, config = Module(), _config(name)
    torch.manual_seed(0)
    module = family.build(config).eval()
    for weight in module.parameters():
        if not weight.any():  # some heads start at zero, and would hide every difference
            nn.init.normal_(weight, std=0.02)
    batch = {"image": torch.randn(_IMAGE)}
    before = _parameters(module)
    start = time.perf_counter()
    try:
        smaller, expected = measure(module, config, batch)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            found = _logits(smaller.eval()(**batch))
    except Exception as error:  # noqa: BLE001  a side that fails is a result
        return {"result": f"fails: {type(error).__name__}: {str(error)[:100]}"}
    difference = float((found - expected).abs().max() / expected.abs().max())
    return {
        "result": "right" if difference < _TOLERANCE else f"differs by {difference:.2g}",
        "kept_parameters": round(_parameters(smaller) / before, 3),
        "seconds": round(seconds, 1),
    }


def _config(name: str) -> ModuleConfig:
    library, model = name.split(":")
    tree = {
        library: model,
        "inputs": [{"name": "image", "shape": ["batch", *_IMAGE[1:]]}],
        "outputs": [{"name": "logits", "path": []}],
    }
    return ModuleConfig.model_validate_json(json.dumps(tree))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _logits(outputs: Any) -> Tensor:
    logits: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs
    return logits


def _cut_ours(
    module: nn.Module, config: ModuleConfig, batch: Mapping[str, Tensor]
) -> tuple[nn.Module, Tensor]:
    found = Module().capability(CuttableAxes, config, LoadedModel(module, batch))
    axes = () if found is None else found.axes
    kept = removed_part(axes)
    state = module.state_dict()
    weights = dict(remove_units(state, axes, kept))
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in weights.items()
        if tensor.shape != state[name].shape
    }
    with weights_on_meta():
        smaller = Module().build(config.model_copy(update={"sizes": shapes}))
    with torch.no_grad(), masked(module, axes, kept):
        expected = _logits(module(**batch))
    return assign_weights(smaller, weights), expected


def _cut_torch_pruning(
    module: nn.Module, _config: ModuleConfig, batch: Mapping[str, Tensor]
) -> tuple[nn.Module, Tensor]:
    import torch_pruning

    smaller = copy.deepcopy(module)
    classes = [
        layer
        for layer in smaller.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[0] == 1000
    ]
    pruner = torch_pruning.pruner.BasePruner(
        smaller,
        dict(batch),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=classes,
        forward_fn=lambda model, inputs: model(**inputs)["logits"],
    )
    names = {id(layer): name for name, layer in smaller.named_modules()}
    left: dict[str, list[int]] = {}
    whole = copy.deepcopy(module)
    for group in pruner.step(interactive=True):
        for name, removed in _removed_inputs(group, names, left, whole):
            whole.get_submodule(name).weight.data[:, removed] = 0
        group.prune()
    with torch.no_grad():
        return smaller, _logits(whole(**batch))


def _removed_inputs(
    group: Any, names: Mapping[int, str], left: dict[str, list[int]], whole: nn.Module
) -> Iterator[tuple[str, list[int]]]:
    """Yield the layers that read units of a group, with the input channels in the whole model."""
    for dependency, indices in group:
        name = names.get(id(dependency.target.module))
        layer = None if name is None else whole.get_submodule(name)
        reads = "in_channels" in dependency.handler.__name__
        if name is None or not reads or not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            continue
        channels = left.setdefault(name, list(range(layer.weight.shape[1])))
        removed = [channels[index] for index in indices]
        left[name] = [channel for channel in channels if channel not in set(removed)]
        yield name, removed


if __name__ == "__main__":
    main()
