"""Comparison of an encoder-decoder's graphs with torch: whole, token by token, and in batches.

Shapes: B samples, T decoder tokens, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import NumericalError, ParityError
from compressor.graphs.decoder.interface import DECODER_TOKENS, LOGITS
from compressor.graphs.values import Array
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from compressor.runtimes.session import Session
from passes.export_onnx.config import ParityConfig
from passes.export_onnx.decoder.parity import DEFAULT_KL, Divergence
from passes.export_onnx.parity import Limits

_DECODED_TOKENS = 8
"""Last tokens that are decoded one by one."""


def compare_encoder_decoder(
    reference: Session,
    folder: Path,
    batches: Sequence[Batch],
    config: ParityConfig,
    limits: Limits,
    threads: int,
) -> list[Divergence]:
    """Compare the encoder and the decoder of a folder with torch.

    Args:
        reference: the parent in torch.
        folder: holds both graphs.
        batches: arrays of the model's inputs; each sample is compared alone, and in its batch.
        config: the limits that the user set.
        limits: the limits of the logits.
        threads: of ONNX Runtime.

    Returns:
        Statistics of each way of running the graphs.

    Raises:
        NumericalError: the logits of torch are not finite.
        ParityError: limits are exceeded; the message lists all of them.
    """
    whole, steps = Divergence("whole"), Divergence("token by token")
    together = Divergence("in batches")
    for batch in batches:
        for sample in _single_samples(batch):
            expected_BTV = _expected(reference, sample)
            decoder = _open(folder, sample, threads)
            _add(
                whole,
                expected_BTV,
                decoder.forward(sample[DECODER_TOKENS], logits_to_keep=0),
                limits,
            )
            for position, actual_BV in _decode(decoder, sample[DECODER_TOKENS]):
                _add(steps, expected_BTV[:, [position]], actual_BV[:, None], limits)
        if len(batch[DECODER_TOKENS]) > 1:
            actual_BTV = _open(folder, batch, threads).forward(
                batch[DECODER_TOKENS], logits_to_keep=0
            )
            _add(together, _expected(reference, batch), actual_BTV, limits)
    ways, kl = [way for way in (whole, steps, together) if way.positions], config.kl or DEFAULT_KL
    if violations := [line for way in ways for line in way.violations(limits, kl)]:
        raise ParityError(
            "the exported encoder and decoder do not compute what the torch model does:\n"
            + "\n".join(f"    {line}" for line in violations),
            remedy="set the limits in `parity:`",
        )
    return ways


def _open(folder: Path, batch: Mapping[str, Array], threads: int) -> OnnxDecoder:
    samples, tokens = batch[DECODER_TOKENS].shape
    decoder = OnnxDecoder(folder, threads, batch_size=samples, capacity=tokens)
    decoder.encode(batch)
    return decoder


def _expected(reference: Session, batch: Mapping[str, Array]) -> Array:
    expected_BTV: Array = reference.run(batch)[LOGITS]
    if not np.isfinite(expected_BTV).all():
        raise NumericalError("the logits of the torch model are NaN or infinite")
    return expected_BTV


def _decode(decoder: OnnxDecoder, ids_BT: Array) -> Iterator[tuple[int, Array]]:
    """Yield position and logits of the last tokens, decoded one by one behind the first ones."""
    first = max(ids_BT.shape[1] - _DECODED_TOKENS, 1)
    decoder.truncate(first)
    for position in range(first, ids_BT.shape[1]):
        yield position, decoder.forward(ids_BT[:, [position]])[:, 0]


def _add(way: Divergence, expected_BTV: Array, actual_BTV: Array, limits: Limits) -> None:
    vocabulary = expected_BTV.shape[-1]
    way.add(expected_BTV.reshape(-1, vocabulary), actual_BTV.reshape(-1, vocabulary), limits.tie)


def _single_samples(batch: Batch) -> Iterator[Batch]:
    for index in range(len(batch[DECODER_TOKENS])):
        yield {name: array[index : index + 1] for name, array in batch.items()}
