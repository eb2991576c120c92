"""The encoder as it is trained: pairs of embeddings of a batch, in chunks, with frozen towers.

Shapes: N pairs, T tokens, H or E width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.data.contract import Dataset
from compressor.errors import RequirementError
from passes.align.checks import TOWERS
from passes.common.contrastive import in_chunks
from passes.common.device import device_of, tensors_from_batch

_MASK = "attention_mask"
_VECTOR_RANK, _HIDDEN_RANK = 2, 3
_DEVIATION = 1e-3


class PairEncoder(nn.Module):
    """Embeddings of both kinds, by the names ``first`` and ``second``.

    An encoder of one kind gets the rows of the first kind followed by those of the second.
    """

    def __init__(
        self,
        model: nn.Module,
        outputs: tuple[str, ...],
        *,
        normalize: bool,
        chunk_size: int | None,
    ) -> None:
        """Create an encoder.

        Args:
            model: the model that is trained.
            outputs: its embedding; or those of two kinds.
            normalize: True to scale embeddings to length 1.
            chunk_size: pairs whose activations are kept at once; None for all.
        """
        super().__init__()
        self.model, self.outputs = model, outputs
        self.normalize, self.chunk_size = normalize, chunk_size
        self.frozen: list[str] = []

    def freeze(self, kinds: Sequence[str]) -> None:
        """Train no parameter of these towers; they stay in eval mode."""
        self.frozen = [TOWERS[kind] for kind in kinds]
        for name in self.frozen:
            self.model.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> PairEncoder:
        """Set the mode of all modules but frozen towers."""
        super().train(mode)
        for name in self.frozen:
            self.model.get_submodule(name).eval()
        return self

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the embeddings [N, E] of both kinds."""
        names, arrays = tuple(inputs), tuple(inputs.values())

        def encode(*chunk: Tensor) -> tuple[Tensor, ...]:
            return self._encode(dict(zip(names, chunk, strict=True)))

        if self.chunk_size is None or not self.training:
            embeddings = encode(*arrays)
        else:
            rows = self.chunk_size * (2 if len(self.outputs) == 1 else 1)
            embeddings = in_chunks(encode, arrays, rows)
        first, second = embeddings if len(self.outputs) > 1 else embeddings[0].chunk(2)
        return {"first": first, "second": second}

    def _encode(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        results = self.model(**inputs)
        embeddings = (pooled(results[name], inputs.get(_MASK)) for name in self.outputs)
        if not self.normalize:
            return tuple(embeddings)
        return tuple(functional.normalize(values, dim=-1) for values in embeddings)


def pooled(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return vectors [N, E]; of hidden states [N, T, E] the mean over valid positions.

    Raises:
        RequirementError: the output has another rank.
    """
    if values.ndim == _VECTOR_RANK:
        return values
    if values.ndim != _HIDDEN_RANK:
        raise RequirementError(
            f"the output has the shape {list(values.shape)}, expected [N, E] or [N, T, E]",
            remedy="name another output of the model in `output`",
        )
    if mask is None or mask.shape != values.shape[:2]:
        return values.mean(dim=1)
    weight_NT1 = mask[:, :, None].to(values.dtype)
    return (values * weight_NT1).sum(dim=1) / weight_NT1.sum(dim=1).clamp(min=1.0)


def scaling_of(module: nn.Module, name: str) -> nn.Parameter | None:
    """Return a scalar parameter of a model, such as ``logit_scale``; None if it has none."""
    value = getattr(module, name, None)
    is_scalar = isinstance(value, nn.Parameter) and value.numel() == 1
    return value if is_scalar else None


def has_unit_length(encoder: PairEncoder, pairs: Dataset) -> bool:
    """Return True if the embeddings of some pairs have length 1 before they are scaled."""
    batch = pairs.batch(np.arange(min(4, len(pairs)), dtype=np.int64))
    tensors = tensors_from_batch(batch, device_of(encoder))
    inputs = {name: tensors[name] for name in pairs.input_names}
    with torch.no_grad():
        values = pooled(encoder.model(**inputs)[encoder.outputs[0]], inputs.get(_MASK))
    return bool(((values.norm(dim=-1) - 1).abs() < _DEVIATION).all())
