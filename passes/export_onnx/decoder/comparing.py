"""Does the built graph say what torch says: whole windows, with images in them, token by token, and padded side by side?

Shapes: B samples, T tokens, V words, P positions that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import NumericalError, ParityError
from compressor.graphs.decoder.interface import INPUT_IDS
from compressor.models.families.transformers.images import TOKEN_TYPES
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.onnxruntime.decoder.vision import VisionTower
from compressor.runtimes.session import Session
from passes.export_onnx.parity import Limits

if TYPE_CHECKING:
    from passes.export_onnx.step import ParityConfig

Array = np.ndarray[Any, Any]
_POSITIONS = 16
"""Looked at together: what fits into a processor's cache."""
_KL = 0.02
_PADDED = 128
"""Tokens of the longer of two prompts side by side."""
_STEPS = 8
"""Tokens that are fed one by one."""


@dataclass(slots=True)
class Divergence:
    """How far one way of running the graph is from torch."""

    way: str
    positions: int = 0
    max_abs: float = 0.0
    cosine: float = 1.0
    """The smallest of any position."""
    same: float = 0.0
    """Positions with the same answer, ties counted as such."""
    kl: float = 0.0
    """Of torch's answer and the graph's, in nats, the mean."""

    def see(self, wanted_PV: Array, got_PV: Array, tie: float) -> None:
        """Some positions more."""
        for start in range(0, len(wanted_PV), _POSITIONS):
            at = slice(start, start + _POSITIONS)
            self._see(wanted_PV[at].astype(np.float64), got_PV[at].astype(np.float64), tie)

    def _see(self, a: Array, b: Array, tie: float) -> None:
        with np.errstate(invalid="ignore"):
            delta = float(np.nan_to_num(np.abs(a - b), nan=np.inf).max())
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosine = float(np.nan_to_num((a * b).sum(axis=1) / np.maximum(lengths, 1e-30)).min())
        chosen = a[np.arange(len(a)), b.argmax(axis=1)]
        p, q = _log_softmax(a), _log_softmax(b)
        before, self.positions = self.positions, self.positions + len(a)
        self.same = (
            self.same * before + float((a.max(axis=1) - chosen <= tie).sum())
        ) / self.positions
        self.kl = (self.kl * before + float((np.exp(p) * (p - q)).sum())) / self.positions
        self.max_abs, self.cosine = max(self.max_abs, delta), min(self.cosine, cosine)

    def offences(self, limits: Limits, kl: float) -> list[str]:
        """What is beyond the limits."""
        found = [] if self.kl <= kl else [f"{self.way}: KL {self.kl:.3g} nats > {kl:g}"]
        if not self.max_abs <= limits.max_abs:
            found.append(f"{self.way}: max|Δ| {self.max_abs:.3g} > {limits.max_abs:g}")
        if not self.cosine >= limits.cosine:
            found.append(f"{self.way}: cosine {self.cosine:.6f} < {limits.cosine:g}")
        if not self.same >= limits.agreement:
            found.append(
                f"{self.way}: answers agree at {self.same:.1%} of {self.positions} positions < {limits.agreement:.1%}"
            )
        return found


def limits_of(config: ParityConfig, *, integers: bool) -> Limits:
    """What the config says; else what is usual for float, and nothing with integers: there the divergence counts."""
    max_abs, cosine, agreement = (math.inf, -1.0, 0.0) if integers else (1e-3, 0.9999, 1.0)
    return Limits(
        config.max_abs or max_abs,
        cosine if config.cosine is None else config.cosine,
        agreement if config.agreement is None else config.agreement,
        config.max_abs or 1e-3,
    )


def compare(
    reference: Session,
    folder: Path,
    windows: Sequence[Batch],
    config: ParityConfig,
    threads: int,
    *,
    integers: bool,
) -> list[dict[str, Any]]:
    """Hold the graph in ``folder`` against torch on windows of tokens, `input_ids` [1, T], with the images in them, if any.

    Raises:
        NumericalError: torch answers with NaN or infinity.
        ParityError: a limit is broken: all that are.
    """
    limits = limits_of(config, integers=integers)
    ways = [Divergence(way) for way in ("windows", "with images", "token by token", "padded")]
    longest = max(window[INPUT_IDS].shape[1] for window in windows)
    alone, tower = (
        OnnxDecoder(folder, threads, capacity=longest),
        VisionTower.open_if_present(folder, threads),
    )
    for window in windows:
        wanted_TV = reference.run(window)["logits"][0]
        if not np.isfinite(wanted_TV).all():
            raise NumericalError("the torch model answers with NaN or infinity")
        ids_1T, first = window[INPUT_IDS], max(window[INPUT_IDS].shape[1] - _STEPS, 1)
        shown = None if tower is None else tower.encode_batch(window)
        if shown is not None:
            first = max(first, int(window[TOKEN_TYPES][0].nonzero()[0].max()) + 1)
        alone.reset()
        got_TV = alone.forward(ids_1T, logits_to_keep=0, images=shown)[0]
        ways[0 if shown is None else 1].see(wanted_TV, got_TV, limits.tie)
        if (
            shown is None and not ways[2].positions
        ):  # as `generate` reads a prompt: in pieces, the last score alone
            alone.reset()
            got_TV = alone.forward(ids_1T[:, :first])[0]
            ways[2].see(wanted_TV[first - 1 : first], got_TV, limits.tie)
        alone.truncate(first)
        for place in range(first, len(wanted_TV)):
            got_TV = alone.forward(ids_1T[:, place : place + 1])[0]
            ways[2].see(wanted_TV[place : place + 1], got_TV, limits.tie)
    alike = [window[INPUT_IDS][0] for window in windows if TOKEN_TYPES not in window][:2]
    if len(alike) > 1:
        for wanted_PV, got_PV in _padded(reference, folder, alike, threads):
            ways[3].see(wanted_PV, got_PV, limits.tie)
    ways = [way for way in ways if way.positions]
    offences = [line for way in ways for line in way.offences(limits, config.kl or _KL)]
    if offences:
        raise ParityError(
            f"the built graph does not compute what the torch model does ({len(windows)} windows):\n"
            + "\n".join(f"    {line}" for line in offences),
            remedy="set `decoder.accuracy_level: 1`, or `parity:` to what is acceptable",
        )
    return [asdict(way) for way in ways]


def _padded(
    reference: Session, folder: Path, windows: Sequence[Array], threads: int
) -> Iterator[tuple[Array, Array]]:
    """Two prompts side by side, the second half as long; what both say at the end of their prompt, and one token on."""
    length = min(_PADDED, min(len(window) for window in windows) - 1)
    lengths = np.array([length, max(length // 2, 1)])
    ids = np.stack(
        [
            np.where(np.arange(length) < n, one[:length], 0)
            for one, n in zip(windows, lengths, strict=True)
        ]
    )
    decoder = OnnxDecoder(folder, threads, batch_size=2, capacity=length + 1)
    prompt = decoder.forward(ids, lengths, logits_to_keep=0)
    rows = np.arange(2)
    said = [prompt[rows, lengths - 1].copy()]
    following = np.array([one[n] for one, n in zip(windows, lengths, strict=True)])
    said.append(decoder.forward(following[:, None])[:, 0])
    for row, (window, n) in enumerate(zip(windows, lengths.tolist(), strict=True)):
        wanted = reference.run({"input_ids": window[None, : n + 1]})["logits"][0]
        for step in (0, 1):
            yield wanted[n - 1 + step][None], said[step][row][None]


def _log_softmax(logits_PV: Array) -> Array:
    shifted = logits_PV - logits_PV.max(axis=1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
