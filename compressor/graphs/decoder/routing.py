"""Shares of experts in the result of each token: in torch, and as nodes of a graph.

Shapes: N tokens, E experts, K experts of a token, G groups of experts, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compressor.graphs.decoder.mixture import Router
from compressor.graphs.decoder.operators import Operators, outputs_of
from compressor.graphs.values import Array

_SMALLEST_SUM = 1e-20
"""Added to the sum that shares are divided by."""
_EXCLUDED = np.float32(-3e38)


def shares_of(router: Router, tokens_NH: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the shares [N, E] of all experts, 0 for those that are not chosen.

    Args:
        router: the rule.
        tokens_NH: the inputs of the layer.
        tensors: those that the router names.
    """
    logits_NE = tokens_NH @ tensors[router.weight].T
    if router.bias is not None:
        logits_NE = logits_NE + tensors[router.bias].flatten()
    if router.scores == "sparse mixer":
        return _sparse_mixer_shares(router, logits_NE)
    is_softmax = router.scores == "softmax"
    scores_NE = logits_NE.softmax(dim=-1) if is_softmax else logits_NE.sigmoid()
    ranked_NE = scores_NE
    if router.correction is not None:
        ranked_NE = ranked_NE + tensors[router.correction].flatten()
    if (groups := router.groups) is not None:
        grouped_NGM = ranked_NE.view(len(ranked_NE), groups.count, -1)
        best = min(2 if groups.rank == "top 2" else 1, grouped_NGM.shape[2])
        kept = grouped_NGM.topk(best).values.sum(dim=2).topk(groups.kept).indices
        is_kept = torch.zeros(len(ranked_NE), groups.count).scatter_(1, kept, 1.0).bool()
        ranked_NE = grouped_NGM.where(is_kept.unsqueeze(2), float(_EXCLUDED)).flatten(1)
    chosen_NK = ranked_NE.topk(router.chosen).indices
    shares_NK = scores_NE.gather(1, chosen_NK)
    if router.is_normalized:
        shares_NK = shares_NK / (shares_NK.sum(dim=1, keepdim=True) + _SMALLEST_SUM)
    return torch.zeros_like(scores_NE).scatter_(1, chosen_NK, shares_NK * router.factor)


def _sparse_mixer_shares(router: Router, logits_NE: Tensor) -> Tensor:
    shares_NE, left_NE = torch.zeros_like(logits_NE), logits_NE
    for _ in range(router.chosen):
        largest, chosen = left_NE.max(dim=1, keepdim=True)
        distances = (largest - logits_NE) / torch.maximum(logits_NE.abs(), largest)
        near_NE = left_NE.masked_fill(distances > 2 * router.jitter, float(_EXCLUDED))
        shares = near_NE.softmax(dim=1).gather(1, chosen)
        shares_NE = shares_NE.scatter(1, chosen, shares)
        left_NE = left_NE.scatter(1, chosen, float(_EXCLUDED))
    return shares_NE * router.factor


def add_shares(
    add: Operators, router: Router, tokens_NH: ir.Value, tensors: Mapping[str, Array], name: str
) -> ir.Value:
    """Append the nodes of ``shares_of``, in float32.

    Args:
        add: the graph.
        router: the rule.
        tokens_NH: the inputs of the layer, in the type of the graph.
        tensors: float32, those that the router names.
        name: prefix of the names of nodes and constants.
    """
    weight = add.constant(f"{name}.weight", np.ascontiguousarray(tensors[router.weight].T))
    tokens_NH = add.cast(tokens_NH, ir.DataType.FLOAT, f"{name}.tokens")
    logits = add.op("MatMul", [tokens_NH, weight], f"{name}.logits")
    if router.bias is not None:
        bias = add.constant(f"{name}.bias", tensors[router.bias].reshape(-1))
        logits = add.op("Add", [logits, bias], f"{name}.logits.biased")
    shape = add.op("Shape", [logits], f"{name}.shape")
    none = add.op("ConstantOfShape", [shape], f"{name}.none", value=_fill(0))
    if router.scores == "sparse mixer":
        return _add_sparse_mixer(add, router, logits, none, name)
    if router.scores == "softmax":
        scores = add.op("Softmax", [logits], f"{name}.scores", axis=-1)
    else:
        scores = add.op("Sigmoid", [logits], f"{name}.scores")
    ranked = scores
    if router.correction is not None:
        correction = add.constant(f"{name}.correction", tensors[router.correction].reshape(-1))
        ranked = add.op("Add", [scores, correction], f"{name}.corrected")
    ranked = _add_groups(add, router, ranked, name)
    top = add.op("TopK", [ranked, add.ints(router.chosen)], f"{name}.top", outputs=2, axis=-1)
    chosen = outputs_of(top)[1]
    shares = add.op("GatherElements", [scores, chosen], f"{name}.chosen.scores", axis=1)
    if router.is_normalized:
        total = add.op("ReduceSum", [shares, add.ints(-1)], f"{name}.total", keepdims=1)
        smallest = add.constant(f"float.{_SMALLEST_SUM:g}", np.array(_SMALLEST_SUM, np.float32))
        total = add.op("Add", [total, smallest], f"{name}.total.positive")
        shares = add.op("Div", [shares, total], f"{name}.normalized")
    shares = _scaled(add, shares, router.factor, f"{name}.chosen.shares")
    return add.op("ScatterElements", [none, chosen, shares], f"{name}.shares", axis=1)


def _add_groups(add: Operators, router: Router, ranked: ir.Value, name: str) -> ir.Value:
    """Exclude the experts of the groups that a token does not reach."""
    groups = router.groups
    if groups is None:
        return ranked
    members = router.experts // groups.count
    by_group = add.op("Reshape", [ranked, add.ints(-1, groups.count, members)], f"{name}.groups")
    best = min(2 if groups.rank == "top 2" else 1, members)
    top = add.op("TopK", [by_group, add.ints(best)], f"{name}.groups.top", outputs=2, axis=-1)
    sums = add.op("ReduceSum", [top, add.ints(-1)], f"{name}.groups.scores", keepdims=0)
    kept = add.op("TopK", [sums, add.ints(groups.kept)], f"{name}.groups.kept", outputs=2, axis=-1)
    shape = add.op("Shape", [sums], f"{name}.groups.shape")
    none = add.op("ConstantOfShape", [shape], f"{name}.groups.none", value=_fill(0))
    ones = add.op(
        "ConstantOfShape",
        [add.op("Shape", [kept], f"{name}.groups.kept.shape")],
        f"{name}.groups.ones",
        value=_fill(1),
    )
    flags = add.op(
        "ScatterElements", [none, outputs_of(kept)[1], ones], f"{name}.groups.flags", axis=1
    )
    flags = add.op("Cast", [flags], f"{name}.groups.reached", to=ir.DataType.BOOL)
    flags = add.op("Unsqueeze", [flags, add.ints(-1)], f"{name}.groups.reached.3d")
    excluded = add.constant("float.excluded", np.array(_EXCLUDED))
    within = add.op("Where", [flags, by_group, excluded], f"{name}.groups.within")
    return add.op("Reshape", [within, add.ints(-1, router.experts)], f"{name}.within")


def _add_sparse_mixer(
    add: Operators, router: Router, logits: ir.Value, none: ir.Value, name: str
) -> ir.Value:
    excluded = add.constant("float.excluded", np.array([[_EXCLUDED]]))
    limit = add.constant(f"float.{2 * router.jitter:g}", np.array(2 * router.jitter, np.float32))
    magnitudes = add.op("Abs", [logits], f"{name}.magnitudes")
    shares, left = none, logits
    for number in range(router.chosen):
        step = f"{name}.{number}"
        largest = add.op("TopK", [left, add.ints(1)], f"{step}.top", outputs=2, axis=-1)
        chosen = outputs_of(largest)[1]
        distances = add.op("Sub", [largest, logits], f"{step}.distances")
        longest = add.op("Max", [magnitudes, largest], f"{step}.longest")
        distances = add.op("Div", [distances, longest], f"{step}.relative")
        is_far = add.op("Greater", [distances, limit], f"{step}.is_far")
        near = add.op("Where", [is_far, excluded, left], f"{step}.near")
        gates = add.op("Softmax", [near], f"{step}.gates", axis=-1)
        share = add.op("GatherElements", [gates, chosen], f"{step}.share", axis=1)
        share = _scaled(add, share, router.factor, f"{step}.share.scaled")
        shares = add.op("ScatterElements", [shares, chosen, share], f"{step}.shares", axis=1)
        rows = add.op("Shape", [chosen], f"{step}.shape")
        removed = add.op("Expand", [excluded, rows], f"{step}.excluded")
        left = add.op("ScatterElements", [left, chosen, removed], f"{step}.left", axis=1)
    return shares


def _scaled(add: Operators, x: ir.Value, factor: float, name: str) -> ir.Value:
    """Return x in float32 times a constant."""
    if factor == 1.0:
        return x
    value = add.constant(f"float.{factor!r}", np.array(factor, np.float32))
    return add.op("Mul", [x, value], name)


def _fill(value: float) -> ir.TensorProtocol:
    return ir.tensor(np.array([value], dtype=np.float32))
