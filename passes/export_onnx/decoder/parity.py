"""Comparison of a decoder's graph with torch, in every way in which the graph is run.

Whole windows, windows with images, token by token behind a prompt, and two prompts padded side by
side.

Shapes: B sequences, T tokens, P compared positions, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import NumericalError, ParityError
from compressor.graphs.decoder.interface import INPUT_IDS, LOGITS
from compressor.graphs.values import Array
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.onnxruntime.decoder.vision import ImageInputs, VisionTower
from compressor.runtimes.session import Session
from passes.export_onnx.config import ParityConfig
from passes.export_onnx.parity import Limits, Tolerance

_POSITIONS_AT_ONCE = 16
"""Positions that are compared at once: their logits fit into a processor's cache."""
DEFAULT_KL = 0.02
_PADDED_TOKENS = 128
"""Tokens of the longer of two prompts side by side."""
_DECODED_TOKENS = 8
"""Tokens that are decoded one by one."""
_REMEDIES = {
    Tolerance.QUANTIZED_DECODER: "set `decoder.accuracy_level: 1`, or set the limits in `parity:`",
    Tolerance.HALF: "set `dtype: float32`, or set the limits in `parity:`",
}


@dataclass(slots=True)
class Divergence:
    """Deviation of one way of running the graph from torch."""

    way: str
    positions: int = 0
    max_abs: float = 0.0
    cosine: float = 1.0
    """The smallest of any position."""
    same: float = 0.0
    """Fraction of the positions with the same most likely token; ties count as the same."""
    kl: float = 0.0
    """Mean KL divergence of the graph's distribution from torch's, in nats."""

    def add(self, expected_PV: Array, actual_PV: Array, tie: float) -> None:
        """Add positions to the statistics."""
        for start in range(0, len(expected_PV), _POSITIONS_AT_ONCE):
            rows = slice(start, start + _POSITIONS_AT_ONCE)
            self._add(expected_PV[rows].astype(np.float64), actual_PV[rows].astype(np.float64), tie)

    def _add(self, a_PV: Array, b_PV: Array, tie: float) -> None:
        with np.errstate(invalid="ignore"):
            delta = float(np.nan_to_num(np.abs(a_PV - b_PV), nan=np.inf).max())
            lengths_P = np.linalg.norm(a_PV, axis=1) * np.linalg.norm(b_PV, axis=1)
            cosines_P = (a_PV * b_PV).sum(axis=1) / np.maximum(lengths_P, 1e-30)
            cosine = float(np.nan_to_num(cosines_P).min())
        chosen_P = a_PV[np.arange(len(a_PV)), b_PV.argmax(axis=1)]
        agreeing = float((a_PV.max(axis=1) - chosen_P <= tie).sum())
        p_PV, q_PV = _log_softmax(a_PV), _log_softmax(b_PV)
        divergence = float((np.exp(p_PV) * (p_PV - q_PV)).sum())
        before, self.positions = self.positions, self.positions + len(a_PV)
        self.same = (self.same * before + agreeing) / self.positions
        self.kl = (self.kl * before + divergence) / self.positions
        self.max_abs, self.cosine = max(self.max_abs, delta), min(self.cosine, cosine)

    def violations(self, limits: Limits, kl: float) -> list[str]:
        """Return a line for each limit that is exceeded."""
        lines = [] if self.kl <= kl else [f"{self.way}: KL {self.kl:.3g} nats > {kl:g}"]
        if not self.max_abs <= limits.max_abs:
            lines.append(f"{self.way}: max|Δ| {self.max_abs:.3g} > {limits.max_abs:g}")
        if not self.cosine >= limits.cosine:
            lines.append(f"{self.way}: cosine {self.cosine:.6f} < {limits.cosine:g}")
        if not self.same >= limits.agreement:
            lines.append(
                f"{self.way}: answers agree at {self.same:.1%} of {self.positions} positions "
                f"< {limits.agreement:.1%}"
            )
        return lines


class _Comparison:
    """Statistics of all ways of running one graph."""

    def __init__(self, reference: Session, folder: Path, threads: int, tie: float) -> None:
        self.reference, self.folder, self.threads, self.tie = reference, folder, threads, tie
        self.windows, self.images = Divergence("windows"), Divergence("with images")
        self.decoding, self.padded = Divergence("token by token"), Divergence("padded")
        self.tower = VisionTower.open_if_present(folder, threads)

    def ways(self) -> list[Divergence]:
        """Return the ways that were compared at any position."""
        ways = (self.windows, self.images, self.decoding, self.padded)
        return [way for way in ways if way.positions]

    def compare_window(self, decoder: OnnxDecoder, window: Batch) -> None:
        """Compare a window as a whole, and its last tokens one by one."""
        expected_TV = self.reference.run(window)[LOGITS][0]
        if not np.isfinite(expected_TV).all():
            raise NumericalError("the logits of the torch model are NaN or infinite")
        images = None if self.tower is None else self.tower.encode_batch(window)
        ids_1T = window[INPUT_IDS]
        decoder.reset()
        actual_TV = decoder.forward(ids_1T, logits_to_keep=0, images=images)[0]
        whole = self.windows if images is None else self.images
        whole.add(expected_TV, actual_TV, self.tie)
        self._decode(decoder, window, expected_TV, images)

    def _decode(
        self, decoder: OnnxDecoder, window: Batch, expected_TV: Array, images: ImageInputs | None
    ) -> None:
        """Compare the last tokens of a window, decoded one by one behind the others."""
        ids_1T = window[INPUT_IDS]
        first = max(ids_1T.shape[1] - _DECODED_TOKENS, 1)
        if images is not None:  # not before the last image token
            first = max(first, int(images.is_image_BT[0].nonzero()[0].max()) + 1)
        elif not self.decoding.positions:
            # The first prompt is read as `generate` does: in chunks, for the last logits alone.
            decoder.reset()
            actual_1V = decoder.forward(ids_1T[:, :first])[0]
            self.decoding.add(expected_TV[first - 1 : first], actual_1V, self.tie)
        _return_to(decoder, ids_1T, first)
        for position in range(first, len(expected_TV)):
            actual_1V = decoder.forward(ids_1T[:, position : position + 1])[0]
            self.decoding.add(expected_TV[position : position + 1], actual_1V, self.tie)

    def compare_padded(self, windows: Sequence[Array]) -> None:
        """Compare two prompts side by side, the second half as long as the first."""
        for expected_1V, actual_1V in self._padded_logits(windows):
            self.padded.add(expected_1V, actual_1V, self.tie)

    def _padded_logits(self, windows: Sequence[Array]) -> Iterator[tuple[Array, Array]]:
        """Yield the logits at the end of each prompt, and one token later."""
        length = min(_PADDED_TOKENS, min(len(window) for window in windows) - 1)
        lengths_B = np.array([length, max(length // 2, 1)])
        ids_BT = np.stack(
            [
                np.where(np.arange(length) < count, window[:length], 0)
                for window, count in zip(windows, lengths_B, strict=True)
            ]
        )
        decoder = OnnxDecoder(self.folder, self.threads, batch_size=2, capacity=length + 1)
        prompt_BTV = decoder.forward(ids_BT, lengths_B, logits_to_keep=0)
        steps_BV = [prompt_BTV[np.arange(2), lengths_B - 1].copy()]
        next_ids = [window[count] for window, count in zip(windows, lengths_B, strict=True)]
        steps_BV.append(decoder.forward(np.array(next_ids)[:, None])[:, 0])
        for row, (window, count) in enumerate(zip(windows, lengths_B.tolist(), strict=True)):
            expected_TV = self.reference.run({INPUT_IDS: window[None, : count + 1]})[LOGITS][0]
            for step, actual_BV in enumerate(steps_BV):
                yield expected_TV[count - 1 + step][None], actual_BV[row][None]


def compare(
    reference: Session,
    folder: Path,
    windows: Sequence[Batch],
    config: ParityConfig,
    threads: int,
    tolerance: Tolerance,
) -> list[dict[str, Any]]:
    """Compare a decoder's graph with torch.

    Args:
        reference: the parent in torch.
        folder: holds the graph, and that of its vision tower, if it has one.
        windows: samples of tokens, `input_ids` [1, T], with their images.
        config: the limits.
        threads: of ONNX Runtime.
        tolerance: the usual limits of such a graph.

    Returns:
        One row of statistics for each way of running the graph.

    Raises:
        NumericalError: the logits of torch are not finite.
        ParityError: limits are exceeded; the message lists all of them.
    """
    limits = Limits.from_config(config, tolerance)
    longest = max(window[INPUT_IDS].shape[1] for window in windows)
    decoder = OnnxDecoder(folder, threads, capacity=longest)
    comparison = _Comparison(reference, folder, threads, limits.tie)
    for window in windows:
        comparison.compare_window(decoder, window)
    text_windows = [window[INPUT_IDS][0] for window in windows if len(window) == 1]
    if len(text_windows) > 1 and decoder.takes_padding:
        comparison.compare_padded(text_windows[:2])
    ways, kl = comparison.ways(), config.kl or DEFAULT_KL
    violations = [line for way in ways for line in way.violations(limits, kl)]
    if violations:
        raise ParityError(
            "the exported decoder does not compute what the torch model does "
            f"({len(windows)} windows of {config.data!r}):\n"
            + "\n".join(f"    {line}" for line in violations),
            remedy=_REMEDIES.get(tolerance, "set the limits in `parity:`"),
        )
    return [asdict(way) for way in ways]


def _return_to(decoder: OnnxDecoder, ids_1T: Array, tokens: int) -> None:
    """Leave only the first tokens of a window in the cache."""
    if decoder.can_truncate(tokens):
        decoder.truncate(tokens)
    else:
        decoder.reset()
        decoder.forward(ids_1T[:, :tokens])


def _log_softmax(logits_PV: Array) -> Array:
    shifted_PV = logits_PV - logits_PV.max(axis=1, keepdims=True)
    result_PV: Array = shifted_PV - np.log(np.exp(shifted_PV).sum(axis=1, keepdims=True))
    return result_PV
