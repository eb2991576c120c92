"""Boxes of YOLOv8 and PicoDet, and the F1 of two sets of boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Boxes = tuple[Array, Array]
"""Corners [n, 4] and classes [n]."""


def iou(box: Array, others: Array) -> Array:
    """Return intersection over union of a box and others, corners [4] and [n, 4]."""
    size = np.clip(
        np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None
    ).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return size / np.maximum(areas - size, 1e-9)


def suppress(corners: Array, scores: Array, classes: Array, threshold: float) -> Boxes:
    """Return the boxes of highest score that overlap no better box of their class."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        same = [other for other in kept if classes[other] == classes[index]]
        if not same or iou(corners[index], corners[same]).max() < threshold:
            kept.append(int(index))
    return corners[kept], classes[kept]


def yolov8(outputs: Sequence[Array]) -> Boxes:
    """Return the boxes of [1, 4 + classes, anchors] with nudenet's thresholds."""
    rows = outputs[0][0].T
    scores = rows[:, 4:].max(axis=1)
    rows, scores = rows[scores >= 0.25], scores[scores >= 0.25]
    center, half = rows[:, :2], rows[:, 2:4] / 2
    corners = np.concatenate([center - half, center + half], axis=1)
    return suppress(corners, scores, rows[:, 4:].argmax(axis=1), 0.45)


def picodet(outputs: Sequence[Array], height: int = 800, width: int = 608) -> Boxes:
    """Return the boxes of PicoDet's four scales with rapid-layout's thresholds."""
    parts = []
    for level, stride in enumerate((8, 16, 32, 64)):
        scores, raw = outputs[level][0], outputs[level + 4][0]
        rows, columns = -(-height // stride), -(-width // stride)
        xs, ys = np.meshgrid(np.arange(columns), np.arange(rows))
        centers = (np.stack([xs, ys], axis=-1).reshape(-1, 2) + 0.5) * stride
        weights = np.exp(raw.reshape(-1, 4, 8) - raw.reshape(-1, 4, 8).max(-1, keepdims=True))
        distance = (weights / weights.sum(-1, keepdims=True)) @ np.arange(8) * stride
        corners = np.concatenate([centers - distance[:, :2], centers + distance[:, 2:]], axis=1)
        found = scores.max(axis=1) > 0.4
        parts.append((corners[found], scores[found].max(axis=1), scores[found].argmax(axis=1)))
    corners, best, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
    return suppress(corners, best, classes, 0.5)


def box_f1(decode: Callable[[Sequence[Array]], Boxes]) -> Callable[..., float]:
    """Return F1 at 50 % overlap of the boxes of two models; 1 where both find none."""

    def agreement(expected: Sequence[Array], actual: Sequence[Array]) -> float:
        (boxes, classes), (others, other_classes) = decode(expected), decode(actual)
        if not len(boxes) and not len(others):
            return 1.0
        free, matched = np.ones(len(others), dtype=bool), 0
        for box, label in zip(boxes, classes, strict=True):
            overlaps = np.where(free & (other_classes == label), iou(box, others), 0)
            if len(others) and overlaps.max() >= 0.5:
                free[overlaps.argmax()] = False
                matched += 1
        return 2 * matched / (len(boxes) + len(others))

    return agreement
