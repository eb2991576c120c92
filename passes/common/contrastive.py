"""Contrastive losses of pairs of embeddings, and the gradient of a batch in chunks.

Shapes: N pairs of a batch, E width of the embeddings, P rows of scores, C candidates of a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def directed_infonce(scores_PC: Tensor, target_P: Tensor) -> Tensor:
    """Return InfoNCE in one direction (Oord et al. 2018): the cross-entropy of each row, a scalar.

    Args:
        scores_PC: Scores of C candidates, divided by the temperature.
        target_P: Index of the positive candidate of each row; rows with -100 do not count.
    """
    return functional.cross_entropy(scores_PC, target_P)


def infonce(
    first_NE: Tensor, second_NE: Tensor, scale: Tensor | float, ignored_NN: Tensor | None = None
) -> Tensor:
    """Return the mean of InfoNCE in both directions, as CLIP does (Radford et al. 2021), a scalar.

    Every pair is a positive; the other N − 1 of the batch are its negatives.

    Args:
        first_NE: Embeddings of one kind, of length 1 for cosines.
        second_NE: Embeddings of the other kind; row n belongs to row n of the first.
        scale: Factor of the products: the inverse of the temperature.
        ignored_NN: True for products that are no negatives; the diagonal is False.
    """
    scores_NN = scale * (first_NE @ second_NE.T)
    if ignored_NN is not None:
        scores_NN = scores_NN.masked_fill(ignored_NN, -torch.inf)
    own_N = torch.arange(len(scores_NN), device=scores_NN.device)
    return (directed_infonce(scores_NN, own_N) + directed_infonce(scores_NN.T, own_N)) / 2


def sigmoid_loss(
    first_NE: Tensor,
    second_NE: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    ignored_NN: Tensor | None = None,
) -> Tensor:
    """Return the loss of SigLIP (Zhai et al. 2023), a scalar: each product by itself.

    Args:
        first_NE: Embeddings of one kind, of length 1 for cosines.
        second_NE: Embeddings of the other kind; row n belongs to row n of the first.
        scale: Factor of the products: the inverse of the temperature.
        bias: Added to the scaled products; −10 at the start of a training makes most of them
            negative, as most pairs are.
        ignored_NN: True for products that do not count; the diagonal is False.
    """
    scores_NN = scale * (first_NE @ second_NE.T) + bias
    signs_NN = 2 * torch.eye(len(scores_NN), device=scores_NN.device, dtype=scores_NN.dtype) - 1
    terms_NN = -functional.logsigmoid(signs_NN * scores_NN)
    if ignored_NN is not None:
        terms_NN = terms_NN.masked_fill(ignored_NN, 0.0)
    return terms_NN.sum() / len(scores_NN)


def soft_infonce(
    first_NE: Tensor, second_NE: Tensor, target_NN: Tensor, scale: Tensor | float
) -> Tensor:
    """Return KL(teacher || student) of the softmax of rows and of columns, their mean, a scalar.

    The similarities of all pairs are distilled (Wu et al. 2023, TinyCLIP: affinity mimicking).

    Args:
        first_NE: Embeddings of one kind, of length 1 for cosines.
        second_NE: Embeddings of the other kind.
        target_NN: Products of the teacher's embeddings.
        scale: Factor of the products of both models; it is trained through the student's alone.
    """
    scores_NN = scale * (first_NE @ second_NE.T)
    targets_NN = target_NN * (scale.detach() if isinstance(scale, Tensor) else scale)
    terms = [
        functional.kl_div(
            student.log_softmax(dim=-1),
            teacher.log_softmax(dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        for student, teacher in ((scores_NN, targets_NN), (scores_NN.T, targets_NN.T))
    ]
    return (terms[0] + terms[1]) / 2


def equal_pairs(*keys: Tensor) -> Tensor:
    """Return which other pairs of a batch share something with a pair, bool [N, N].

    They are no negatives: two captions of one image, or one passage that answers two queries. The
    diagonal is False.

    Args:
        keys: One row for each pair, [N] or [N, ...]; pairs with equal rows share something.
    """
    count = len(keys[0])
    shared_NN = torch.zeros(count, count, dtype=torch.bool, device=keys[0].device)
    for key in keys:
        group_N = torch.unique(key.flatten(1) if key.ndim > 1 else key, dim=0, return_inverse=True)[
            1
        ]
        shared_NN |= group_N[:, None] == group_N
    return shared_NN.fill_diagonal_(False)


def in_chunks(
    encode: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], chunk_size: int
) -> tuple[Tensor, ...]:
    """Return the outputs for a batch, whose backward pass keeps the activations of one chunk.

    This is gradient caching (GradCache, Gao et al. 2021): a batch is encoded in chunks of which
    only the outputs are kept; the gradient of each chunk's outputs, which depends on the whole
    batch, is passed on to the weights after its activations were computed again. The gradient is
    that of the whole batch, and the time that of another forward pass. Random numbers, such as
    those of dropout, are the same both times.

    Args:
        encode: Maps chunks of the inputs to outputs, each with a row for each row of the inputs.
        inputs: Arrays [N, ...].
        chunk_size: Largest number of rows of a chunk.
    """
    parts: list[tuple[Tensor, ...]] = [
        checkpoint(encode, *chunk, use_reentrant=False)
        for chunk in zip(*(torch.split(array, chunk_size) for array in inputs), strict=True)
    ]
    return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
