"""Config and digests of the data source ``phone-bed``."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field

from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import (
    DataFacts,
    Dataset,
    DataSource,
    InputFacts,
    SourceConfig,
    SourceContext,
    StarterData,
    StarterInputs,
)
from compressor.errors import MissingExtraError

VERSION = 1
"""Increase it whenever a change of this package's code changes a sample."""
_PACKAGES = {"qtawesome": "qtawesome", "espeakng_loader": "espeakng-loader", "PIL": "pillow"}
"""Required modules, and the distributions that provide them."""
_CODE_OF_BED = {
    "build.py": "8ce8bba0a5940cd2df80423395b2f65401c0e7e6e08ba78e4170c65c6d5fb36d",
    "commands.py": "f3ecff2c6d69df93e9532bbc74ed1b16aa8ad3c70f62611593d1a7423e1152e3",
    "espeak.py": "fe6fa541c074b4a89b5d7d2e11a8d4cc503b36d3156b6b575911ea95f9f5c654",
    "icons.py": "ddce6435ffbd11b11b2da38fa98baa1db953fc4e8373e44bfcdab0dfbad6f047",
    "speak.py": "91877bc97df3d051a01294bf8158a56f9ec998fb068910e6e2be39e87516cc63",
}
_CODE_OF_DATASET = [
    "249eef16ad84588fc913d64abbceb95e73e7d0f53afdb80821e700986315adbe",
    "2b3256b5ba60bf3747b0cdb555694a3e290b90c56a1d24e6cc3052d87ac286d8",
]
"""sha256 of the code as it was first published. These constants are part of the digests, which
therefore do not change with comments or names; ``VERSION`` tells changes of samples apart."""
_NUM_SAMPLES = {"train": 60_000, "validation": 1_500, "test": 2_000}


class PhoneBedConfig(SourceConfig):
    """Config of the data source ``phone-bed``."""

    split: Literal["train", "validation", "test"]
    """Part of the data. Icon families, voices and command templates of one split occur in no
    other."""
    num_samples: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Number of samples; by default 60,000 of `train`, 1,500 of `validation` and 2,000 of
    `test`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the samples; another seed gives other screens and commands from the same icons and
    voices."""
    augment: bool | None = None
    """Vary screens and speech from epoch to epoch; by default only for `train`."""
    commands_per_screen: Annotated[int, Field(ge=1, le=9)] = 1
    """Number of consecutive commands that refer to one screen. More than one makes training
    cheaper, since the screen is encoded once for all of them."""


class PhoneBed(DataSource[PhoneBedConfig]):
    """Screens of nine icons and a command; the label is the cell that the command names, or none.

    Icons come from real icon fonts. Commands are in Chinese and English, as text or as the speech
    of espeak-ng.
    """

    name = "phone-bed"
    Config = PhoneBedConfig

    def starter(self, model: StarterInputs) -> StarterData | None:
        """Return the validation split for a model that takes its inputs, in their sizes."""
        config = PhoneBedConfig(source=self.name, split="validation")
        own = self.facts(config, SourceContext(model.folder)).inputs or ()
        if any(not _fits(facts, model.named(facts.name)) for facts in own):
            return None
        return StarterData({"split": config.split}, frozenset(facts.name for facts in own))

    def problems(self, config: PhoneBedConfig, context: SourceContext) -> list[str]:  # noqa: ARG002
        """Return the packages that are not installed."""
        missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
        if not missing:
            return []
        return [f"needs {', '.join(missing)}: pip install 'autoglm-compress[phone-bed]'"]

    def facts(self, config: PhoneBedConfig, context: SourceContext) -> DataFacts:  # noqa: ARG002
        """Return the shapes of the inputs, the number of samples, and the classes."""
        from calibration.sources.phone_bed.commands import TOKENS
        from calibration.sources.phone_bed.dataset import CLASSES, SCREEN
        from calibration.sources.phone_bed.espeak import FRAMES, MELS

        return DataFacts(
            inputs=(
                InputFacts("screen", "uint8", (3, SCREEN, SCREEN)),
                InputFacts("tokens", "int64", (TOKENS,)),
                InputFacts("mel", "float32", (MELS, FRAMES)),
            ),
            has_labels=True,
            num_samples=int(_with_defaults(config)["num_samples"]),
            num_classes=len(CLASSES),
            class_names=CLASSES,
        )

    def digest(self, config: PhoneBedConfig, context: SourceContext) -> str:  # noqa: ARG002
        """Return a digest of the config, the fonts, the packages and the version of the code."""
        return digest_json(
            {
                "config": _with_defaults(config),
                "bed": bed_digest(),
                "composing": _CODE_OF_DATASET,
            }
        )

    def load(self, config: PhoneBedConfig, context: SourceContext) -> Dataset:
        """Return the samples.

        The first call builds icons and speech into the cache, in under a minute on two cores.
        """
        from calibration.sources.phone_bed.build import build_bed
        from calibration.sources.phone_bed.dataset import PhoneBedDataset

        for module, package in _PACKAGES.items():
            if find_spec(module) is None:
                raise MissingExtraError(package, "the data source phone-bed", "phone-bed")
        folder = build_bed(context.cache / f"phone-bed-{bed_digest()[:16]}", context.progress)
        fields = _with_defaults(config)
        return PhoneBedDataset(
            folder,
            config.split,
            int(fields["num_samples"]),
            config.seed,
            augment=bool(fields["augment"]),
            commands_per_screen=config.commands_per_screen,
        )


def _with_defaults(config: PhoneBedConfig) -> dict[str, int | str | bool]:
    """Return the config with the defaults of its split."""
    count = _NUM_SAMPLES[config.split] if config.num_samples is None else config.num_samples
    augment = config.split == "train" if config.augment is None else config.augment
    return {
        "split": config.split,
        "num_samples": count,
        "seed": config.seed,
        "augment": augment,
        "commands_per_screen": config.commands_per_screen,
    }


@cache
def bed_digest() -> str:
    """Return the sha256 over everything that the built arrays depend on."""
    from calibration.sources.phone_bed.icons import CONCEPTS_FILE, FONTS, charmap_file, fonts_folder

    files = _CODE_OF_BED | {CONCEPTS_FILE.name: digest_file(CONCEPTS_FILE)}
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


def _fits(own: InputFacts, wanted: InputFacts | None) -> bool:
    """Return True if a model can take an input, whose free sizes are None."""
    if wanted is None or len(wanted.shape) != len(own.shape):
        return False
    sizes = zip(own.shape, wanted.shape, strict=True)
    return all(size in {None, actual} for actual, size in sizes)
