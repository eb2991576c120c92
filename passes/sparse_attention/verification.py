"""Held-back texts: KL divergence by position, and the loss of a passage that is repeated.

A sequence is a text whose last tokens repeat a passage of its start. Its first part measures the KL
divergence from full attention, and the repeated passage whether the model still copies: perplexity
alone hardly shows that it does not.

Shapes: Q positions, V vocabulary entries, N hidden values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.errors import NumericalError

_ROWS = 128
"""Positions whose logits are in memory at once."""
_FIRST_EDGE = 128
"""Smallest range of positions, in tokens."""
_PASSAGE_AT = 0.15
"""Start of the repeated passage, as a fraction of the text."""
_SKIPPED = 0.2
"""Part of the repetition that is not scored: the model has to notice it first."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a pattern costs; means over positions and texts, in nats."""

    kl_by_range: tuple[float, ...]
    """KL divergence from full attention in each range of positions."""
    same_top1: float
    """Part of the positions whose most probable token is that of full attention."""
    loss: float
    """Increase of the cross-entropy of the text."""
    copy_loss: float
    """Increase of the cross-entropy of the repeated passage."""

    @property
    def kl(self) -> float:
        """Largest KL divergence of a range."""
        return max(self.kl_by_range)


def position_ranges(first: int, last: int) -> tuple[range, ...]:
    """Return ranges of positions from ``first``, each twice as far as the one before.

    Args:
        first: first position at which a pattern leaves a key out.
        last: end of the positions.
    """
    edges = [first]
    edge = 1
    while edge < last:
        edge *= 2
        if edge - edges[-1] >= _FIRST_EDGE and last - edge >= _FIRST_EDGE:
            edges.append(edge)
    return tuple(range(start, stop) for start, stop in zip(edges, [*edges[1:], last], strict=True))


def with_repetition(tokens_Q: Tensor, copied: int) -> Tensor:
    """Return a text whose last tokens repeat a passage of its start."""
    start = int(_PASSAGE_AT * len(tokens_Q))
    return torch.cat([tokens_Q[:-copied], tokens_Q[start : start + copied]])


def skipped_tokens(copied: int) -> int:
    """Return how many tokens at the start of a repetition are not scored."""
    return int(_SKIPPED * copied)


class Verification:
    """Measures a model with a pattern against the same model with full attention."""

    def __init__(self, module: Any, texts: Sequence[Tensor], copied: int, first: int) -> None:
        """Run the texts with full attention.

        Args:
            module: the model, with full attention.
            texts: tokens of each text, all of one length.
            copied: length of the repeated passage.
            first: first position at which a pattern leaves a key out.
        """
        self._module, self._copied = module, copied
        self._texts = [with_repetition(text, copied) for text in texts]
        self._end = len(texts[0]) - copied
        self.ranges = position_ranges(min(first, self._end - 1), self._end)
        self._hidden: list[Tensor] = []
        self._losses: list[Tensor] = []

    def run_reference(self) -> Iterator[None]:
        """Run the texts with full attention, and yield after each."""
        for text in self._texts:
            hidden_QN = self._run(text)
            self._hidden.append(hidden_QN)
            losses = [
                _cross_entropies(logits_QV, text[rows.start + 1 : rows.stop + 1])
                for rows, logits_QV in self._logits(hidden_QN[:-1])
            ]
            self._losses.append(torch.cat(losses))
            yield

    @torch.inference_mode()
    def measure(self) -> Measured:
        """Run the texts with the present attention of the model, and compare.

        Raises:
            NumericalError: a logit is not finite.
        """
        parts = [
            self._compare(*items)
            for items in zip(self._texts, self._hidden, self._losses, strict=True)
        ]
        kl_Q, same_Q, loss_Q, copy_Q = (torch.stack(part) for part in zip(*parts, strict=True))
        first = self.ranges[0].start
        return Measured(
            tuple(
                float(kl_Q[:, span.start : span.stop].mean().clamp(min=0)) for span in self.ranges
            ),
            float(same_Q[:, first:].mean()),
            float(loss_Q[:, first:].mean()),
            float(copy_Q.mean()),
        )

    def _compare(
        self, text: Tensor, full_QN: Tensor, full_loss_Q: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return KL, agreement and loss of the text's positions, and loss of the passage's."""
        hidden_QN = self._run(text)
        kl, same, losses = [], [], []
        for (rows, logits_QV), (_, full_QV) in zip(
            self._logits(hidden_QN[:-1]), self._logits(full_QN[:-1]), strict=True
        ):
            expected, actual = full_QV.log_softmax(-1), logits_QV.log_softmax(-1)
            kl.append((expected.exp() * (expected - actual)).sum(-1))
            same.append((full_QV.argmax(-1) == logits_QV.argmax(-1)).double())
            losses.append(_cross_entropies(logits_QV, text[rows.start + 1 : rows.stop + 1]))
        kl_Q, increase_Q = torch.cat(kl), torch.cat(losses) - full_loss_Q
        if not bool(kl_Q.isfinite().all()):
            raise NumericalError("NaN or infinity in the logits of the verification texts")
        scored = self._end + skipped_tokens(self._copied)
        end = self._end - 1  # the next token is still of the text
        return (
            kl_Q[: self._end],
            torch.cat(same)[: self._end],
            increase_Q[:end],
            increase_Q[scored:],
        )

    @torch.inference_mode()
    def _run(self, text: Tensor) -> Tensor:
        """Return the hidden states before the head, [Q, N]."""
        output = self._module.base_model(input_ids=text[None], use_cache=False)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def _logits(self, hidden_QN: Tensor) -> Iterator[tuple[range, Tensor]]:
        """Yield positions and their logits [Q, V], a part of the positions at a time."""
        head = self._module.get_output_embeddings()
        cap = getattr(self._module.config.get_text_config(), "final_logit_softcapping", None)
        for start in range(0, len(hidden_QN), _ROWS):
            logits = head(hidden_QN[start : start + _ROWS]).float()
            if cap is not None:
                logits = cap * torch.tanh(logits / cap)
            yield range(start, start + len(logits)), logits


def _cross_entropies(logits_QV: Tensor, next_Q: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits_QV, next_Q, reduction="none")
