"""Rules by which transformers loads packed checkpoints; no torch.

They are those of transformers 5.23 with compressed-tensors 0.20 (decision 9).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compressor.models.consumers.findings import Checked, Finding, StoredLinear, Verdict
from compressor.models.quantized.packing_schemes import TRANSPOSED_LAYERS
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG

TRANSFORMERS_VERSION = "5.23"
"""Release of transformers whose rules these are."""
_UNPACK = "dequantize"
"""Field of ``quantization_config`` with which transformers unpacks while it reads."""


def transposed_note(layer: str) -> str:
    """Return the note that transformers does not load packed ``Conv1D`` layers, such as one."""
    return (
        "from_pretrained of transformers packs torch.nn.Linear alone and leaves random weights in "
        f"the Conv1D layers of this class, such as {layer}: use this tool's runtimes or vLLM, "
        "whose loaders read them"
    )


def check_transformers(
    layers: Sequence[StoredLinear], tree: Mapping[str, Any], method: str
) -> Checked:
    """Return what ``from_pretrained`` does with each packed layer of a checkpoint.

    Args:
        layers: the linear layers of the checkpoint.
        tree: config.json.
        method: ``quant_method`` of the packed layers.
    """
    packed = [layer for layer in layers if layer.grid is not None]
    quantization = tree.get(QUANTIZATION_CONFIG) or {}
    if method == "compressed-tensors":
        notes = ["needs the package compressed-tensors, and unpacks the weights"]
        findings = list(_compressed_tensors(packed, quantization))
    else:
        notes = ["needs the packages gptqmodel and accelerate"]
        findings = [Finding(layer, Verdict.LOADS, "gptqmodel") for layer in packed]
    return Checked(f"transformers {TRANSFORMERS_VERSION}", (), notes, findings)


def _compressed_tensors(
    packed: Sequence[StoredLinear], quantization: Mapping[str, Any]
) -> Iterator[Finding]:
    """Yield findings: zero-points load only while unpacking, and that on one grid for all."""
    transposed = frozenset(quantization.get(TRANSPOSED_LAYERS, ()))
    unpacks = bool(quantization.get(_UNPACK))
    several = len({layer.grid for layer in packed}) > 1
    for layer in packed:
        if layer.grid is None:
            continue
        if layer.name in transposed:
            reason = "transformers packs no Conv1D, and leaves random weights in it"
            yield Finding(layer, Verdict.REFUSED, reason=reason)
        elif unpacks and several:
            reason = f"with `{_UNPACK}` all layers need one grid, and here they have several"
            yield Finding(layer, Verdict.REFUSED, reason=reason)
        elif layer.grid.symmetric or unpacks:
            yield Finding(layer, Verdict.LOADS, "unpacked")
        else:
            reason = "it takes packed zero-points for unpacked ones"
            nearest = layer.grid.model_copy(update={"symmetric": True})
            yield Finding(layer, Verdict.REFUSED, None, reason, nearest)
