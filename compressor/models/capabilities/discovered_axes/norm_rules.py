"""Rules of normalizations, reductions, softmax, pooling, and of tensors filled with one value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compressor.models.capabilities.discovered_axes.channel_graph import Call, ChannelGraph, Rule
from compressor.models.capabilities.discovered_axes.labels import Labels, varying
from compressor.models.capabilities.discovered_axes.product_rules import sum_over


def batch_norm(graph: ChannelGraph, call: Call) -> Labels:
    """Join the channels with weight, bias and statistics."""
    inputs = call.args[0]
    vectors = [vector for vector in call.args[1:5] if isinstance(vector, Tensor)]
    return _joined_with_vectors(graph, inputs, graph.labels(inputs), vectors, 1)


def layer_norm(graph: ChannelGraph, call: Call) -> Labels:
    """Freeze the normalized channels; those of groups, such as heads, are joined in the group."""
    inputs, shape = call.args[:2]
    dims = list(range(inputs.ndim - len(shape), inputs.ndim))
    tracks = _over_statistics(graph, graph.labels(inputs).tracks, dims)
    vectors = [vector for vector in call.args[2:4] if isinstance(vector, Tensor)]
    graph.freeze(*vectors)
    return Labels(tracks)


def group_norm(graph: ChannelGraph, call: Call) -> Labels:
    """Join the channels of each group, and the channels with weight and bias."""
    inputs, groups = call.args[0], call.args[6]
    tracks = []
    for track in graph.labels(inputs).tracks:
        if 1 not in varying(track):
            graph.tracks.freeze(track)
            continue
        channels = graph.tracks.merge(track, sorted(varying(track) - {1}))
        graph.tracks.merge(channels.reshape(groups, -1), [1])
        tracks.append(channels)
    vectors = [vector for vector in call.args[1:3] if isinstance(vector, Tensor)]
    labels = Labels(graph.tracks.resolve_all(tracks))
    return _joined_with_vectors(graph, inputs, labels, vectors, 1)


def _joined_with_vectors(
    graph: ChannelGraph, inputs: Tensor, labels: Labels, vectors: list[Tensor], dim: int
) -> Labels:
    operands = [(labels, tuple(inputs.shape))]
    for vector in vectors:
        form = [1] * inputs.ndim
        form[dim] = vector.numel()
        known = graph.labels(vector)
        tracks = [track.reshape(form) for track in known.tracks]
        operands.append((Labels(tracks, known.uniform, known.weights), tuple(form)))
    return graph.tracks.combine(operands, inputs.ndim)


def _over_statistics(graph: ChannelGraph, tracks: list[Tensor], dims: list[int]) -> list[Tensor]:
    """Return tracks after statistics over dimensions, which all channels there have in common."""
    for track in graph.tracks.resolve_all(tracks):
        along = varying(track) & set(dims)
        if along and along == varying(track):
            graph.tracks.freeze(track)
        elif along:
            graph.mark(graph.heads, track)
            graph.tracks.merge(track, sorted(along))
    return graph.tracks.resolve_all(tracks)


def along_dimension(graph: ChannelGraph, call: Call) -> Labels:
    """Freeze channels along which a softmax, a scan or a sort goes."""
    inputs = call.args[0]
    dims = [_dim(call, inputs)]
    return Labels(_over_statistics(graph, graph.labels(inputs).tracks, dims))


def _dim(call: Call, inputs: Tensor) -> int:
    for argument in call.function._schema.arguments:
        if argument.name == "dim":
            position = list(call.function._schema.arguments).index(argument)
            dim = call.argument(position, "dim", argument.default_value)
            return int(-1 if dim is None else dim) % max(inputs.ndim, 1)
    return inputs.ndim - 1


def reduction(graph: ChannelGraph, call: Call) -> Labels:
    """Reduce labels; channels that are averaged or compared with each other are frozen."""
    inputs = call.args[0]
    dims, keep = _reduced(call, inputs)
    known = graph.labels(inputs)
    if call.operator == "sum":
        tracks = sum_over(graph, known.tracks, dims)
    else:
        tracks = _over_statistics(graph, known.tracks, dims)
    if not keep:
        for dim in sorted(dims, reverse=True):
            tracks = [track.squeeze(dim) for track in tracks]
    return Labels(tracks, known.uniform, known.weights)


def _reduced(call: Call, inputs: Tensor) -> tuple[list[int], bool]:
    """Return the reduced dimensions, and whether they are kept with size 1."""
    dims: Any = None
    keep = False
    for position, argument in enumerate(call.function._schema.arguments):
        if argument.name == "dim":
            dims = call.argument(position, "dim", argument.default_value)
        if argument.name == "keepdim":
            keep = bool(call.argument(position, "keepdim", False))
    if dims is None or dims == []:
        return list(range(inputs.ndim)), keep
    dims = [dims] if isinstance(dims, int) else list(dims)
    return [dim % max(inputs.ndim, 1) for dim in dims], keep


def pooling(graph: ChannelGraph, call: Call) -> Labels:
    """Keep the labels of channels; those along spatial dimensions are joined."""
    inputs = call.args[0]
    digit = next((int(char) for char in call.operator if char in "123"), 2)
    dims = list(range(inputs.ndim - digit, inputs.ndim))
    kept = []
    for track in graph.labels(inputs).tracks:
        along = varying(track) & set(dims)
        if along == varying(track):
            graph.tracks.freeze(track)
            continue
        kept.append(graph.tracks.merge(track, sorted(along)))
    return Labels(graph.tracks.resolve_all(kept))


def filled(_graph: ChannelGraph, _call: Call) -> Labels:
    """Mark a tensor that is filled with one value, or with noise such as that of dropout."""
    return Labels(uniform=True)


NORM_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        [
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "cudnn_batch_norm",
            "_batch_norm_with_update",
            "batch_norm",
        ],
        batch_norm,
    ),
    **dict.fromkeys(
        [
            "native_layer_norm",
            "_fused_rms_norm",
        ],
        layer_norm,
    ),
    "native_group_norm": group_norm,
    **dict.fromkeys(
        [
            "_softmax",
            "_log_softmax",
            "_safe_softmax",
            "cumsum",
            "cumprod",
            "sort",
            "topk",
            "cummax",
            "cummin",
            "logcumsumexp",
            "glu_backward",
        ],
        along_dimension,
    ),
    **dict.fromkeys(
        [
            "sum",
            "mean",
            "amax",
            "amin",
            "max",
            "min",
            "var",
            "std",
            "var_mean",
            "std_mean",
            "norm",
            "linalg_vector_norm",
            "prod",
            "argmax",
            "argmin",
            "any",
            "all",
            "logsumexp",
            "median",
            "mode",
        ],
        reduction,
    ),
    **dict.fromkeys(
        [
            "avg_pool1d",
            "avg_pool2d",
            "avg_pool3d",
            "max_pool2d_with_indices",
            "max_pool3d_with_indices",
            "_adaptive_avg_pool2d",
            "_adaptive_avg_pool3d",
            "adaptive_avg_pool1d",
            "adaptive_avg_pool2d",
            "adaptive_max_pool2d",
            "upsample_nearest1d",
            "upsample_nearest2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
            "upsample_linear1d",
            "grid_sampler_2d",
            "max_pool2d",
        ],
        pooling,
    ),
    **dict.fromkeys(
        [
            "zeros",
            "ones",
            "full",
            "empty",
            "zeros_like",
            "ones_like",
            "full_like",
            "empty_like",
            "new_zeros",
            "new_ones",
            "new_full",
            "new_empty",
            "scalar_tensor",
            "zero",
            "fill",
            "bernoulli",
            "rand_like",
            "randn_like",
        ],
        filled,
    ),
}
