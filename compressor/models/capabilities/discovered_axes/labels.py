"""Labels of tensor elements: which channels of the weights each element belongs to.

Every index of every dimension of a parameter or buffer is a *node*. Nodes that have to be removed
together are joined. An activation carries *tracks*: tensors of nodes that are broadcastable to its
shape, of size 1 in the dimensions along which the node is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

UNIFORM = 0
"""Label of elements without data of their own, such as zeros, which fit any size."""
FROZEN = 1
"""Node of everything that cannot be removed."""
Nodes = np.ndarray[tuple[int], np.dtype[np.int64]]


class NodeSets:
    """Disjoint sets of nodes, joined in bulk."""

    def __init__(self) -> None:
        self._parents: Nodes = np.arange(2, dtype=np.int64)

    def add(self, count: int) -> int:
        """Create nodes, and return the first one."""
        first = len(self._parents)
        new = np.arange(first, first + count, dtype=np.int64)
        self._parents = np.concatenate([self._parents, new])
        return first

    def roots(self, nodes: Nodes) -> Nodes:
        """Return the representative of each node's set; that of frozen nodes is ``FROZEN``."""
        roots = self._parents[nodes]
        while True:
            above = self._parents[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parents[nodes] = roots  # shortens the paths
        return roots

    def join(self, first: Nodes, second: Nodes) -> None:
        """Join the sets of nodes pairwise; ``UNIFORM`` joins nothing."""
        both = (first != UNIFORM) & (second != UNIFORM)
        pairs = np.unique(np.stack([self.roots(first[both]), self.roots(second[both])]), axis=1)
        first, second = pairs
        while True:
            one, other = self.roots(first), self.roots(second)
            differ = one != other
            if not differ.any():
                return
            low, high = np.minimum(one, other)[differ], np.maximum(one, other)[differ]
            np.minimum.at(self._parents, high, low)

    def freeze(self, nodes: Nodes) -> None:
        """Mark nodes, and all that are joined with them, as not removable."""
        self.join(nodes, np.full_like(nodes, FROZEN))


@dataclass(slots=True)
class Labels:
    """Labels of one tensor."""

    tracks: list[Tensor] = field(default_factory=list)
    """int64, each broadcastable to the tensor's shape; no two vary along the same dimension."""
    uniform: bool = False
    """True for a tensor that was filled with one value, and adapts to any size."""
    weights: bool = False
    """True if the tensor is computed from parameters alone."""


def varying(track: Tensor) -> set[int]:
    """Return the dimensions along which the nodes of a track differ."""
    return {dim for dim, size in enumerate(track.shape) if size > 1}


def flat(track: Tensor) -> Nodes:
    """Return the nodes of a track as one vector."""
    return track.reshape(-1).numpy()


class Tracks:
    """Operations on tracks that join their nodes."""

    def __init__(self) -> None:
        self.sets = NodeSets()

    def resolve(self, track: Tensor) -> Tensor | None:
        """Return a track by representatives, of size 1 where they agree; None if none can go."""
        resolved = torch.from_numpy(self.sets.roots(flat(track))).view(track.shape)
        if bool((resolved <= FROZEN).all()):
            return None
        for dim in varying(resolved):
            first = resolved.narrow(dim, 0, 1)
            if bool((resolved == first).all()):
                resolved = first
        if not varying(resolved):  # the whole tensor belongs to one unit
            self.freeze(resolved)
            return None
        return resolved

    def resolve_all(self, tracks: Sequence[Tensor]) -> list[Tensor]:
        """Return the tracks that are not frozen; see ``resolve``."""
        return [kept for track in tracks if (kept := self.resolve(track)) is not None]

    def freeze(self, *tracks: Tensor) -> None:
        """Freeze the nodes of tracks."""
        for track in tracks:
            self.sets.freeze(flat(track))

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """Join two tracks element by element, and return the result."""
        shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
        one, other = first.expand(shape), second.expand(shape)
        self.sets.join(flat(one), flat(other))
        return torch.where(one == UNIFORM, other, one)

    def merge(self, track: Tensor, dims: Sequence[int]) -> Tensor:
        """Join the nodes of a track along dimensions, and return it with size 1 there."""
        for dim in dims:
            first = track.narrow(dim, 0, 1)
            if track.shape[dim] > 1:
                self.sets.join(flat(first.expand(track.shape)), flat(track))
            track = first
        return track

    def combine(self, operands: Sequence[tuple[Labels, tuple[int, ...]]], rank: int) -> Labels:
        """Return the labels of an elementwise function of tensors.

        A track is frozen if another operand has data along its dimensions without a track there:
        the data would not shrink with it.

        Args:
            operands: labels and shape of each tensor.
            rank: dimensions of the result, to which shapes are aligned from the right.
        """
        aligned = [
            (
                [_aligned(track, rank) for track in labels.tracks],
                labels,
                (1,) * (rank - len(shape)) + shape,
            )
            for labels, shape in operands
        ]
        joined: list[Tensor] = []
        for tracks, _, _ in aligned:
            for track in tracks:
                for _, labels, shape in aligned:
                    dims = {dim for dim in varying(track) if shape[dim] > 1}
                    others = [
                        dim for other in _tracks_of(aligned, labels) for dim in varying(other)
                    ]
                    if dims and not labels.uniform and not dims & set(others):
                        self.freeze(track)
                joined = self.add(joined, track)
        return Labels(
            self.resolve_all(joined),
            uniform=all(labels.uniform for labels, _ in operands),
            weights=all(labels.weights or labels.uniform for labels, _ in operands),
        )

    def add(self, tracks: list[Tensor], added: Tensor) -> list[Tensor]:
        """Return tracks with one more, joined with those that vary along the same dimensions."""
        separate = []
        for track in tracks:
            if varying(track) & varying(added):
                added = self.join(track, added)
            else:
                separate.append(track)
        return [*separate, added]


def _aligned(track: Tensor, rank: int) -> Tensor:
    return track.reshape((1,) * (rank - track.ndim) + tuple(track.shape))


def _tracks_of(
    aligned: Sequence[tuple[list[Tensor], Labels, tuple[int, ...]]], wanted: Labels
) -> list[Tensor]:
    return next(tracks for tracks, labels, _ in aligned if labels is wanted)
