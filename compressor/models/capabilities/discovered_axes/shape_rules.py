"""Rules of operators that move elements without computing: views, slices, concatenation, lookups.

The operator itself is applied to the labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.models.capabilities.discovered_axes.channel_graph import Call, ChannelGraph, Rule
from compressor.models.capabilities.discovered_axes.labels import (
    FROZEN,
    UNIFORM,
    Labels,
    varying,
)

_SPLITTING = {"view", "_unsafe_view", "reshape", "unflatten", "_reshape_alias"}


def move(graph: ChannelGraph, call: Call) -> list[Labels]:
    """Apply the operator to the labels of its first argument.

    Where a dimension of channels is split into several, the channels of the last one are joined:
    the code that states the sizes counts groups, such as heads, of a fixed width.
    """
    source: Tensor = call.args[0]
    labels = graph.labels(source)
    # A view of labels that are expanded may need a copy.
    function = torch.reshape if call.operator in _SPLITTING else call.function
    results = [Labels(uniform=labels.uniform, weights=labels.weights) for _ in call.outputs]
    for track in graph.tracks.resolve_all(labels.tracks):
        moved = function(track.expand(source.shape), *call.args[1:], **call.kwargs)
        parts = moved if isinstance(moved, list | tuple) else (moved,)
        for result, part in zip(results, parts, strict=True):
            if (kept := graph.tracks.resolve(part)) is None:
                continue
            if call.operator in _SPLITTING and len(varying(kept)) > len(varying(track)):
                last = max(varying(kept))
                graph.mark(graph.heads, kept)
                kept = graph.tracks.merge(kept, [last])
            result.tracks.append(kept)
    return [_separate(graph, result) for result in results]


def reshape_keeping(graph: ChannelGraph, call: Call) -> list[Labels]:
    """Apply a view; labels whose dimension it leaves whole are not expanded."""
    source: Tensor = call.args[0]
    target = call.outputs[0]
    labels = graph.labels(source)
    kept = []
    for track in labels.tracks:
        dims = varying(track)
        new_dim = (
            _kept_dim(source.shape, target.shape, next(iter(dims))) if len(dims) == 1 else None
        )
        if new_dim is None:
            return move(graph, call)
        form = [1] * target.ndim
        form[new_dim] = track.numel()
        kept.append(track.reshape(form))
    return [Labels(kept, labels.uniform, labels.weights)]


def _kept_dim(before: torch.Size, after: torch.Size, dim: int) -> int | None:
    """Return the dimension of a view that equals one of its source, with all that follow it."""
    trailing = len(before) - dim
    if len(after) >= trailing and before[dim:] == after[len(after) - trailing :]:
        return len(after) - trailing
    if len(after) > dim and before[: dim + 1] == after[: dim + 1]:
        return dim
    return None


def permute(graph: ChannelGraph, call: Call) -> list[Labels]:
    """Apply a permutation of dimensions; the labels need not be expanded."""
    labels = graph.labels(call.args[0])
    tracks = [call.function(track, *call.args[1:], **call.kwargs) for track in labels.tracks]
    return [Labels(tracks, labels.uniform, labels.weights)]


def expand(graph: ChannelGraph, call: Call) -> list[Labels]:
    """Prepend dimensions to the labels."""
    labels = graph.labels(call.args[0])
    rank = call.outputs[0].ndim
    tracks = [
        track.reshape((1,) * (rank - track.ndim) + tuple(track.shape)) for track in labels.tracks
    ]
    return [Labels(tracks, labels.uniform, labels.weights)]


def concatenate(graph: ChannelGraph, call: Call) -> list[Labels]:
    """Concatenate or stack labels; parts without labels are frozen."""
    parts: list[Tensor] = [part for part in call.args[0] if part.ndim > 1 or part.numel()]
    all_labels = [graph.labels(part) for part in parts]
    dim = call.argument(1, "dim", 0)
    result = Labels(
        uniform=all(labels.uniform for labels in all_labels),
        weights=all(labels.weights for labels in all_labels),
    )
    rounds = max((len(labels.tracks) for labels in all_labels), default=0)
    if not rounds:
        return [result]
    merged = []
    for number in range(rounds):
        pieces = []
        for part, labels in zip(parts, all_labels, strict=True):
            fill = UNIFORM if labels.uniform else FROZEN
            piece = torch.full((), fill, dtype=torch.int64).expand(part.shape)
            if number < len(labels.tracks):
                piece = labels.tracks[number].expand(part.shape)
            pieces.append(piece)
        merged.append(call.function(pieces, dim))
    for track in merged:
        if (kept := graph.tracks.resolve(track)) is not None:
            if bool((kept == FROZEN).any()) and not _only_along(kept, dim):
                graph.tracks.freeze(kept)
                continue
            result.tracks.append(kept)
    return [_separate(graph, result)]


def _only_along(track: Tensor, dim: int) -> bool:
    """Return True if a track varies along one dimension only."""
    return varying(track) == {dim % track.ndim}


def pad(graph: ChannelGraph, call: Call) -> list[Labels]:
    """Pad the labels; padding along a dimension of channels is frozen."""
    source, padding = call.args[0], list(call.args[1])
    labels = graph.labels(source)
    result = Labels(uniform=False, weights=labels.weights)
    for track in graph.tracks.resolve_all(labels.tracks):
        for dim in varying(track):
            before = 2 * (source.ndim - 1 - dim)
            if before < len(padding) and any(padding[before : before + 2]):
                graph.tracks.freeze(track)
        result.tracks += graph.tracks.resolve_all([track])
    return [result]


def write_into(graph: ChannelGraph, call: Call) -> list[Labels]:
    """Join the labels of a tensor with those of values that are written into parts of it."""
    target = call.args[0]
    values = [
        value
        for value in call.tensors()[1:]
        if value.is_floating_point() and value.ndim == target.ndim
    ]
    return [graph.combine([target, *values], target.ndim)]


def _separate(graph: ChannelGraph, labels: Labels) -> Labels:
    """Return labels whose tracks vary along different dimensions; others are joined."""
    tracks: list[Tensor] = []
    for track in graph.tracks.resolve_all(labels.tracks):
        tracks = graph.tracks.add(tracks, track)
    return Labels(tracks, labels.uniform, labels.weights)


_MOVES = (
    "select slice split split_with_sizes unbind chunk index_select index flip roll repeat "
    "repeat_interleave narrow as_strided_copy pixel_shuffle pixel_unshuffle gather unfold "
    "diagonal im2col tril triu squeeze unsqueeze flatten movedim rot90 channel_shuffle"
)
_SAME = "permute transpose t adjoint mT swapaxes"
SHAPE_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_MOVES.split(), move),
    **dict.fromkeys(_SAME.split(), permute),
    **dict.fromkeys(_SPLITTING, reshape_keeping),
    "expand": expand,
    "cat": concatenate,
    "stack": concatenate,
    "constant_pad_nd": pad,
    "reflection_pad2d": pad,
    "replication_pad2d": pad,
    **dict.fromkeys(
        [
            "index_put",
            "_index_put_impl",
            "index_add",
            "index_copy",
            "scatter",
            "scatter_add",
            "scatter_reduce",
            "slice_scatter",
            "select_scatter",
            "copy",
            "masked_scatter",
        ],
        write_into,
    ),
}
