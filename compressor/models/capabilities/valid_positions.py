"""Positions of a batch that are not padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.models.capabilities.capability import Capability

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PositionMask:
    """Positions of one batch that are not padding."""

    valid_BT: Tensor
    """Bool [B, T], True at positions that are not padding."""
    is_recording: bool = False
    """True if the positions are samples or frames of recordings: layers have fewer, each of which
    stands for equally many."""
    decoder_tokens: int | None = None
    """Length of the decoder's texts, which are not masked; None without a decoder."""

    def select(self, values: Tensor, *, channels_first: bool = False) -> Tensor:
        """Return the values at valid positions.

        Args:
            values: any shape; the mask applies to values of shape [B, P, ...] with further
                dimensions, since one of [B, width] may be as wide as texts are long. P is T, or
                fewer frames of a recording.
            channels_first: True for values of a convolution; the mask applies to [B, C, P].

        Returns:
            Values [N, ...] at the N valid positions; all values if the mask does not apply.
        """
        if channels_first:
            if values.ndim != 3:
                return values
            values = values.movedim(1, -1)
        if (valid_BP := self._at(values)) is not None:
            return values[valid_BP]
        return values.movedim(-1, 1) if channels_first else values

    def _at(self, values: Tensor) -> Tensor | None:
        """Return the mask at the positions of values [B, P, ...]; None if it does not apply."""
        valid_BT = self.valid_BT
        batch, length = valid_BT.shape
        if values.ndim <= 2 or values.shape[0] != batch:
            return None
        positions = values.shape[1]
        if positions == length:
            return valid_BT
        if not self.is_recording or values.ndim != 3 or positions > length:
            return None
        if positions == self.decoder_tokens:
            return None
        middles = [(2 * frame + 1) * length // (2 * positions) for frame in range(positions)]
        return valid_BT[:, middles]


@dataclass(frozen=True, slots=True)
class ValidPositions(Capability):
    """The input that masks padding.

    ``qat`` observes ranges and corrects biases at valid positions only: what a layer computes at
    padding is never used, and would widen the ranges.
    """

    label: ClassVar[str] = "valid positions"
    remedy: ClassVar[str] = "name the input that masks padding in the family's `capabilities`"

    mask_input: str | None = None
    """Input [B, T] that is 0 at padding; None if every position of every batch is valid."""
    is_recording: bool = False
    """True if its positions are samples or frames of recordings."""
    decoder_input: str | None = None
    """Input with the tokens of a decoder; None without one."""

    def mask(self, batch: Mapping[str, Tensor]) -> PositionMask | None:
        """Return the valid positions of a batch; None if all are valid."""
        if self.mask_input is None or self.mask_input not in batch:
            return None
        decoder = None if self.decoder_input is None else batch.get(self.decoder_input)
        length = None if decoder is None else decoder.shape[1]
        return PositionMask(batch[self.mask_input] != 0, self.is_recording, length)
