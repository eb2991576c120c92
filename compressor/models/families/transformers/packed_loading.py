"""Loading of packed checkpoints by ``from_pretrained``, as transformers 5.23 does it.

By default it builds packed layers without a ``weight``, and unpacks them before the first forward
pass. That fails for classes that initialize the weight of such a layer, and it loads zero-points
wrong. With ``dequantize`` in ``quantization_config`` it unpacks while it reads, on one grid for all
layers. Other consumers, such as vLLM, ignore the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from compressor.models.consumers.transformers import transposed_note
from compressor.models.families.transformers.layouts import is_tabulated
from compressor.models.families.transformers.modules import build_on_meta
from compressor.models.quantized.packing_schemes import TRANSPOSED_LAYERS

_DEQUANTIZE = "CompressedTensorsConfig(dequantize=True)"


def initialized_linears(module: PreTrainedModel) -> list[str]:
    """Return the linear layers whose weight a class initializes without a check that it has one.

    ``from_pretrained`` initializes every module, also where all tensors are loaded.

    Args:
        module: the class; its parameters are on the device ``meta``. It is left as it was.
    """
    linears = {child: name for name, child in module.named_modules() if _has_own_weight(child)}
    weights = {child: child._parameters.pop("weight") for child in linears}
    initialized: list[str] = []
    try:
        for owner, child in _with_owner(module, module):
            for linear in _initialize(owner, child, weights):
                initialized.append(linears[linear])
                linear._parameters["weight"] = weights[linear]
    finally:
        for linear, weight in weights.items():
            linear._parameters["weight"] = weight
    return sorted(initialized)


def _has_own_weight(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module._parameters.get("weight") is not None


def _with_owner(
    module: nn.Module, owner: PreTrainedModel
) -> Iterator[tuple[PreTrainedModel, nn.Module]]:
    """Yield the modules, each with the model inside which it is initialized."""
    for child in module.children():
        yield from _with_owner(child, child if isinstance(child, PreTrainedModel) else owner)
    yield owner, module


def _initialize(
    owner: PreTrainedModel, module: nn.Module, weights: Mapping[nn.Module, Any]
) -> Iterator[nn.Module]:
    """Yield the linear layers whose weight is missed; the caller gives it back."""
    for _ in weights:
        try:
            owner._init_weights(module)  # type: ignore[no-untyped-call]
        except AttributeError as error:
            if error.name != "weight" or not isinstance(error.obj, nn.Linear):
                return
            yield error.obj
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return  # an operation that the device ``meta`` lacks
        else:
            return


def loading_fields(
    tree: Mapping[str, Any], quantization: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return ``quantization_config`` with what ``from_pretrained`` needs, and notes for the user.

    Args:
        tree: config.json of the float checkpoint.
        quantization: the ``quantization_config`` of the packed one.
    """
    if transposed := quantization.get(TRANSPOSED_LAYERS):
        return dict(quantization), [transposed_note(transposed[0])]
    if quantization.get("quant_method") != "compressed-tensors":
        return dict(quantization), []
    groups = [group["weights"] for group in quantization["config_groups"].values()]
    notes = []
    if not is_tabulated(tree) and (divided := divided_weights(build_on_meta(tree))):
        notes = [
            f"from_pretrained of transformers refuses packed checkpoints of this class, because it "
            f"divides {divided[0]} while it loads: use this tool's torch runtime, or ship the "
            "float model"
        ]
    reasons = []
    has_zero_points = not all(weights["symmetric"] for weights in groups)
    if has_zero_points:
        reasons.append("zero-points")
    if not is_tabulated(tree) and (names := _initialized_and_packed(tree, quantization)):
        reasons.append(f"packed layers that this class initializes, such as {names[0]}")
    if notes or not reasons:
        return dict(quantization), notes
    what = f"from_pretrained of transformers does not load {' and '.join(reasons)}"
    if len(groups) > 1:
        remedy = "set `symmetric: true`" if has_zero_points else "pack all layers with one grid"
        return dict(quantization), [f"{what} on several grids: {remedy}, or use vLLM"]
    if is_tabulated(tree):
        remedy = f"unless it gets quantization_config={_DEQUANTIZE}; or set `symmetric: true`"
        return dict(quantization), [f"{what}, {remedy}"]
    if buffers := buffers_named_weight(build_on_meta(tree)):
        return dict(quantization), [
            f"{what} packed, and cannot unpack them while it reads, because it takes {buffers[0]} "
            "for a packed layer: use this tool's torch runtime, or ship the float model"
        ]
    note = f"{what} packed: config.json lets it unpack them while it reads (`dequantize`)"
    return {**quantization, "dequantize": True}, [note]


def divided_weights(module: PreTrainedModel) -> list[str]:
    """Return the stored weights that transformers divides into several tensors while it loads.

    For a packed checkpoint it expects the tensors of a packed layer in place of such a weight, and
    refuses an operation with several inputs and several results, even where no file has the weight.

    Args:
        module: the class; its parameters are not used.
    """
    return [
        source
        for conversion in get_model_conversion_mapping(module)
        if isinstance(conversion, WeightConverter) and len(conversion.target_patterns) > 1
        for source in conversion.source_patterns
        if source.endswith(".weight")
    ]


def buffers_named_weight(module: PreTrainedModel) -> list[str]:
    """Return the buffers named ``weight``, as those of frozen batch norms.

    With ``dequantize``, transformers looks for a parameter of that name.

    Args:
        module: the class; its tensors are not used.
    """
    return [name for name, _ in module.named_buffers() if name.rpartition(".")[2] == "weight"]


def _initialized_and_packed(tree: Mapping[str, Any], quantization: Mapping[str, Any]) -> list[str]:
    plain = set(quantization["ignore"])
    return [name for name in initialized_linears(build_on_meta(tree)) if name not in plain]
