"""Rules of products: matrices, convolutions, attention and embeddings."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from compressor.models.capabilities.discovered_axes.channel_graph import Call, ChannelGraph, Rule
from compressor.models.capabilities.discovered_axes.labels import Labels, flat, varying

_Operand = tuple[Labels, tuple[int, ...]]


def matrix_product(graph: ChannelGraph, call: Call) -> Labels:
    """Join the summed dimension of both matrices, and their batch dimensions."""
    return _product(graph, _operand(graph, call.args[0]), _operand(graph, call.args[1]))


def added_matrix_product(graph: ChannelGraph, call: Call) -> Labels:
    """Join as a matrix product, and the result with the tensor that is added."""
    rank = call.outputs[0].ndim
    product = _product(graph, _operand(graph, call.args[1]), _operand(graph, call.args[2]))
    bias = _operand(graph, call.args[0])
    return graph.tracks.combine([bias, (product, tuple(call.outputs[0].shape))], rank)


def grouped_matrix_product(graph: ChannelGraph, call: Call) -> Labels:
    """Join as a matrix product of rows [T, k] with the matrix of their expert [E, k, n]."""
    rows, experts = _operand(graph, call.args[0]), _operand(graph, call.args[1])
    labels, shape = experts
    if len(rows[1]) + 1 != len(shape):  # the experts are along a dimension of both
        graph.freeze(*call.tensors())
        return Labels()
    kept = []
    for track in labels.tracks:
        if 0 in varying(track):
            graph.tracks.freeze(track)
        else:
            kept.append(track.squeeze(0))
    return _product(graph, rows, (Labels(kept, labels.uniform, labels.weights), shape[1:]))


def _operand(graph: ChannelGraph, tensor: Tensor) -> _Operand:
    return graph.labels(tensor), tuple(tensor.shape)


def _product(graph: ChannelGraph, left: _Operand, right: _Operand) -> Labels:
    """Return the labels of a matrix product [..., m, k] · [..., k, n].

    It is an elementwise product of [..., m, k, 1] and [..., 1, k, n], summed over k.
    """
    left_rank, right_rank = len(left[1]), len(right[1])
    summed = max(left_rank, right_rank) - 1
    first, second = left, right
    if right_rank == 1:  # a vector
        summed = left_rank - 1
    else:
        first, second = _unsqueezed(left, -1), _unsqueezed(right, -3)
    for labels, _ in (first, second):
        if labels.weights:
            for track in labels.tracks:
                if varying(track) == {track.ndim - (2 if right_rank > 1 else 1)}:
                    graph.mark(graph.reads, track)
    rank = max(len(first[1]), len(second[1]))
    product = graph.tracks.combine([first, second], rank)
    tracks = sum_over(graph, product.tracks, [summed])
    return Labels([track.squeeze(summed) for track in tracks], weights=product.weights)


def _unsqueezed(operand: _Operand, dim: int) -> _Operand:
    labels, sizes = operand
    if len(sizes) == 1:
        return operand
    tracks = [track.unsqueeze(dim) for track in labels.tracks]
    shape = list(sizes)
    shape.insert(len(shape) + 1 + dim, 1)
    return Labels(tracks, labels.uniform, labels.weights), tuple(shape)


def sum_over(graph: ChannelGraph, tracks: list[Tensor], dims: list[int]) -> list[Tensor]:
    """Return the tracks of a sum; those that vary along other dimensions too are joined."""
    kept = []
    for track in graph.tracks.resolve_all(tracks):
        along = varying(track) & set(dims)
        if along and along == varying(track):
            continue  # a unit that is removed adds nothing
        if along:
            graph.mark(graph.heads, track)
        kept.append(graph.tracks.merge(track, sorted(along)))
    return graph.tracks.resolve_all(kept)


def convolution(graph: ChannelGraph, call: Call) -> Labels:
    """Join the input channels with the weight's columns; its rows label the output."""
    inputs, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    rank = inputs.ndim
    channels = _along(graph, inputs, 1)
    rows, columns = (_along(graph, weight, dim) for dim in ((1, 0) if transposed else (0, 1)))
    if groups > 1:
        outputs = _grouped(graph, weight, channels, inputs.shape[1], groups, transposed=transposed)
    else:
        outputs = rows
        if columns is not None:
            if graph.labels(weight).weights:
                graph.mark(graph.reads, columns)
            _join_vectors(graph, channels, columns)
        elif channels is not None:
            graph.tracks.sets.freeze(flat(channels))
    if bias is not None:
        _join_vectors(graph, outputs, _along(graph, bias, 0))
    if outputs is None:
        return Labels()
    graph.mark(graph.convolved, outputs)
    form = [1] * rank
    form[1] = outputs.numel()
    return Labels(graph.tracks.resolve_all([outputs.reshape(form)]))


def _along(graph: ChannelGraph, tensor: Tensor, dim: int) -> Tensor | None:
    """Return the nodes along one dimension [size]; those along other dimensions are joined.

    Tracks that do not vary along the dimension are frozen, unless they are those of weights.
    """
    labels = graph.labels(tensor)
    found: Tensor | None = None
    for track in labels.tracks:
        if dim in varying(track):
            found = graph.tracks.merge(track, sorted(varying(track) - {dim})).reshape(-1)
        elif not labels.weights:
            graph.tracks.freeze(track)
    return found


def _join_vectors(graph: ChannelGraph, first: Tensor | None, second: Tensor | None) -> None:
    """Join two vectors of nodes; freeze one if the other has no labels."""
    if first is not None and second is not None:
        graph.tracks.join(first, second)
        return
    for track in (first, second):
        if track is not None:
            graph.tracks.freeze(track)


def _grouped(
    graph: ChannelGraph,
    weight: Tensor,
    channels: Tensor | None,
    count: int,
    groups: int,
    *,
    transposed: bool,
) -> Tensor | None:
    """Join all channels of each group, and return the nodes of the output [channels].

    Only whole groups can be removed. A depthwise convolution has groups of one channel.
    """
    per_group = weight.shape[1]
    inner = _along(graph, weight, 1)
    if inner is not None:
        graph.tracks.freeze(inner)
    rows = _along(graph, weight, 0)
    if rows is None or channels is None:
        graph.tracks.freeze(*(track for track in (rows, channels) if track is not None))
        return None
    by_group = [track.reshape(groups, -1) for track in (channels, rows)]
    for track in by_group:
        graph.tracks.merge(track, [1])
    graph.tracks.join(by_group[0][:, 0], by_group[1][:, 0])
    if transposed:
        return by_group[1][:, :1].expand(groups, per_group).reshape(-1)
    assert rows.numel() % groups == 0 and count % groups == 0  # noqa: S101
    return rows


def attention(graph: ChannelGraph, call: Call) -> Labels:
    """Join the heads of queries, keys and values [B, H, T, width], and the mask's."""
    query, key, value = call.args[:3]
    mask = call.kwargs.get("attn_mask") if "attn_mask" in call.kwargs else None
    if mask is None and call.operator == "_scaled_dot_product_efficient_attention":
        mask = call.argument(3, "attn_bias")
    operands: list[_Operand] = []
    for tensor in (query, key, value):
        tracks = []
        for track in graph.labels(tensor).tracks:
            merged = graph.tracks.merge(track, [track.ndim - 1])
            graph.mark(graph.heads, merged)
            tracks.append(merged)
        repeats = query.shape[1] // tensor.shape[1]
        tracks = [_repeated(track, repeats) for track in tracks]
        operands.append(
            (Labels(graph.tracks.resolve_all(tracks)), (query.shape[0], query.shape[1], 1, 1))
        )
    if mask is not None:
        operands.append((graph.labels(mask), tuple(mask.shape)))
    return graph.tracks.combine(operands, query.ndim)


def _repeated(track: Tensor, repeats: int) -> Tensor:
    return track.repeat_interleave(repeats, 1) if repeats > 1 and track.shape[1] > 1 else track


def embedding(graph: ChannelGraph, call: Call) -> Labels:
    """Label looked-up rows by the table's columns; the rows themselves cannot be removed."""
    table, indices = call.args[:2]
    rank = indices.ndim + 1
    tracks = []
    for track in graph.labels(table).tracks:
        if 0 in varying(track):
            graph.tracks.freeze(track)
        else:
            graph.mark(graph.tables, track)
            tracks.append(track.reshape((1,) * (rank - 1) + (-1,)))
    return Labels(graph.tracks.resolve_all(tracks))


PRODUCT_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("mm", "bmm", "mv", "matmul", "dot"), matrix_product),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm"), added_matrix_product),
    **dict.fromkeys(("_grouped_mm", "grouped_mm_fallback"), grouped_matrix_product),
    **dict.fromkeys(("convolution", "convolution_overrideable", "_convolution"), convolution),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        attention,
    ),
    "embedding": embedding,
}
