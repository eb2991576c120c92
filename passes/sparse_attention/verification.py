"""Held-back texts: KL divergence by position, and the loss of a passage that is repeated.

A sequence is a text whose last tokens repeat a passage of its start. Its first part measures the KL
divergence from full attention, and the repeated passage whether the model still copies: perplexity
alone hardly shows that it does not.

Shapes: Q positions, V vocabulary entries, N hidden values.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def mean_of(texts: Sequence[Measured]) -> Measured:
    """Return the means over texts of one length."""
    count = len(texts)
    by_text = zip(*(text.kl_by_range for text in texts), strict=True)
    return Measured(
        tuple(max(0.0, sum(values) / count) for values in by_text),
        sum(text.same_top1 for text in texts) / count,
        sum(text.loss for text in texts) / count,
        sum(text.copy_loss for text in texts) / count,
    )


class Verification:
    """Measures a model with a pattern against the same model with full attention."""

    def __init__(self, module: Any, texts: Sequence[Tensor], copied: int, first: int) -> None:
        """Take the texts.

        Args:
            module: the model.
            texts: tokens of each text, all of one length.
            copied: length of the repeated passage.
            first: first position at which a pattern leaves a key out.
        """
        self._module = module
        self._texts = [with_repetition(text, copied) for text in texts]
        self._end = len(texts[0]) - copied
        self.ranges = position_ranges(min(first, self._end - 1), self._end)
        self._copied = range(self._end + skipped_tokens(copied), len(texts[0]) - 1)
        self._hidden: dict[int, Tensor] = {}

    @property
    def texts(self) -> int:
        """Number of texts."""
        return len(self._texts)

    def set_reference(self, number: int, hidden_QN: Tensor) -> None:
        """Set the hidden states of a text with full attention, as ``hidden_states`` returns them.

        Args:
            number: index of the text.
            hidden_QN: hidden states before the head.
        """
        self._hidden[number] = hidden_QN

    @torch.inference_mode()
    def hidden_states(self, number: int) -> Tensor:
        """Run a text with the present attention of the model, and return its states [Q, N]."""
        output = self._module.base_model(input_ids=self._texts[number][None], use_cache=False)
        hidden_QN: Tensor = output.last_hidden_state[0]
        return hidden_QN

    @torch.inference_mode()
    def measure(self, number: int) -> Measured:
        """Run a text with the present attention of the model, and compare.

        Args:
            number: index of the text, whose reference is set.

        Raises:
            NumericalError: a logit is not finite.
        """
        hidden_QN = self.hidden_states(number)
        first = self.ranges[0].start
        own = self._compare(number, hidden_QN, range(first, self._end))
        copied = self._compare(number, hidden_QN, self._copied)
        return Measured(
            tuple(
                float(own.kl_Q[span.start - first : span.stop - first].mean())
                for span in self.ranges
            ),
            float(own.same_Q.mean()),
            float(own.loss_Q[:-1].mean()),  # the last one's next token is the repetition's
            float(copied.loss_Q.mean()),
        )

    def _compare(self, number: int, hidden_QN: Tensor, positions: range) -> _Compared:
        """Return what positions lose, a part of them in memory at a time."""
        kl, same, losses = [], [], []
        for start in range(positions.start, positions.stop, _ROWS):
            rows = slice(start, min(start + _ROWS, positions.stop))
            next_Q = self._texts[number][rows.start + 1 : rows.stop + 1]
            full_QV, logits_QV = (
                self._logits(states[rows]).log_softmax(-1)
                for states in (self._hidden[number], hidden_QN)
            )
            kl.append((full_QV.exp() * (full_QV - logits_QV)).sum(-1))
            same.append((full_QV.argmax(-1) == logits_QV.argmax(-1)).double())
            losses.append((full_QV - logits_QV).gather(-1, next_Q[:, None])[:, 0])
        kl_Q = torch.cat(kl)
        if not bool(kl_Q.isfinite().all()):
            raise NumericalError("NaN or infinity in the logits of the verification texts")
        return _Compared(kl_Q, torch.cat(same), torch.cat(losses))

    def _logits(self, hidden_QN: Tensor) -> Tensor:
        """Return the logits of hidden states, [Q, V]."""
        logits: Tensor = self._module.get_output_embeddings()(hidden_QN).float()
        cap = getattr(self._module.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)


@dataclass(frozen=True, slots=True)
class _Compared:
    """What positions lose to full attention, in nats."""

    kl_Q: Tensor
    same_Q: Tensor
    loss_Q: Tensor
    """Increase of the cross-entropy of the next token."""
