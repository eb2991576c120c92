"""The data source ``phone-bed``: screens of real icons, and commands written or spoken, in Chinese and English."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import Dataset, DataSource, SourceConfig, SourceContext
from compressor.errors import MissingExtraError

VERSION = 1
"""Bump it when the same config may give other samples although no file of this package changed."""
_PACKAGES = {"qtawesome": "qtawesome", "espeakng_loader": "espeakng-loader", "PIL": "pillow"}
_BUILDING = ("build.py", "commands.py", "concepts.json", "espeak.py", "icons.py", "speak.py")
_SIZES = {"train": 60_000, "validation": 1_500, "test": 2_000}


class PhoneBedConfig(SourceConfig):
    """Which part of the bed, and how much of it."""

    split: Literal["train", "validation", "test"]
    """Icon families, voices and templates of one split are in no other."""
    num_samples: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """How many samples: by default 60,000 for training, 1,500 for validation, 2,000 for test."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Other screens and commands from the same icons and voices."""
    augment: bool | None = None
    """Whether samples change from epoch to epoch; by default only those for training."""
    commands_per_screen: Annotated[int, Field(ge=1, le=9)] = 1
    """Commands in a row that are about one screen. More than one makes training cheaper: the screen is seen once for all."""


class PhoneBed(DataSource[PhoneBedConfig]):
    """Which of nine icons does a command mean, or none? Real icon fonts, espeak-ng's voices, Chinese and English."""

    name = "phone-bed"
    Config = PhoneBedConfig

    def problems(self, config: PhoneBedConfig, context: SourceContext) -> list[str]:  # noqa: ARG002
        """Packages that are missing."""
        missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
        return (
            [f"needs {', '.join(missing)}: pip install 'autoglm-compress[phone-bed]'"]
            if missing
            else []
        )

    def digest(self, config: PhoneBedConfig, context: SourceContext) -> str:  # noqa: ARG002
        """Over the config, the fonts, the voices and the code that draws, speaks and composes."""
        own = Path(__file__).parent
        composing = [digest_file(own / name) for name in ("dataset.py", "source.py")]
        return digest_json({"config": _whole(config), "bed": bed_digest(), "composing": composing})

    def load(self, config: PhoneBedConfig, context: SourceContext) -> Dataset:
        """The samples; the bed is built into the cache the first time (under a minute on two cores)."""
        from calibration.sources.phone_bed.build import built
        from calibration.sources.phone_bed.dataset import PhoneBedDataset

        for module, package in _PACKAGES.items():
            if find_spec(module) is None:
                raise MissingExtraError(package, "the data source phone-bed", "phone-bed")
        folder = built(context.cache / f"phone-bed-{bed_digest()[:16]}", context.progress)
        whole = _whole(config)
        return PhoneBedDataset(
            folder,
            config.split,
            int(whole["num_samples"]),
            config.seed,
            augment=bool(whole["augment"]),
            together=config.commands_per_screen,
        )


def _whole(config: PhoneBedConfig) -> dict[str, int | str | bool]:
    """The config with its defaults for the split filled in."""
    size = _SIZES[config.split] if config.num_samples is None else config.num_samples
    augment = config.split == "train" if config.augment is None else config.augment
    return {
        "split": config.split,
        "num_samples": size,
        "seed": config.seed,
        "augment": augment,
        "commands_per_screen": config.commands_per_screen,
    }


@cache
def bed_digest() -> str:
    """sha256 over everything that the built arrays depend on."""
    from calibration.sources.phone_bed.icons import FONTS, charmap_file, fonts_folder

    own = Path(__file__).parent
    files = {name: digest_file(own / name) for name in _BUILDING}
    if find_spec("qtawesome") is not None:
        for _, stem in FONTS.values():
            for name in (f"{stem}.ttf", charmap_file(stem)):
                files[name] = digest_file(fonts_folder() / name)
    versions = {package: _version(package) for package in (*_PACKAGES.values(), "numpy")}
    return digest_json({"version": VERSION, "files": files, "packages": versions})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
