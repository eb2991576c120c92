"""Models of timm and torchvision, created without pretrained weights: nothing is downloaded."""

from __future__ import annotations

import importlib
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.config.discovery import suggestion
from compressor.errors import MissingExtraError, ModelError
from compressor.models.torchvision_operators import declare_missing_operators

if TYPE_CHECKING:
    from torch import nn

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_DOWNLOADS = {"pretrained", "weights", "weights_backbone", "pretrained_backbone"}
"""Arguments that would download weights."""


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Images that a model was trained on."""

    shape: tuple[int, int, int] = (3, 224, 224)
    """Channels, height and width in pixels."""
    mean: tuple[float, ...] = _IMAGENET_MEAN
    """Mean of each channel, of values from 0 to 1."""
    std: tuple[float, ...] = _IMAGENET_STD
    """Standard deviation of each channel."""


class Library(ABC):
    """A library of image models that are created by name."""

    name: ClassVar[str]

    def create(self, model: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Return a model with random weights.

        Raises:
            MissingExtraError: the library is not installed.
            ModelError: it has no such model, or refuses the arguments.
        """
        library = self._checked(model)
        if downloads := sorted(_DOWNLOADS & arguments.keys()):
            raise ModelError(
                f"`arguments` of {model}: {', '.join(downloads)} would download weights",
                remedy="name a file with its state dict as `weights`",
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the library, about weights and initialization
                return self._create(library, model, arguments)
        except Exception as error:  # whatever a constructor raises for its arguments
            raise ModelError(
                f"{self.name} cannot create {model}: {type(error).__name__}: {error}",
                remedy="`arguments` are passed to the constructor of the model: correct "
                + (", ".join(map(str, arguments)) or "them"),
            ) from error

    def image_settings(self, model: str) -> ImageSettings:
        """Return the images that a model was trained on; those of ImageNet if it names none.

        Raises:
            MissingExtraError: the library is not installed.
            ModelError: it has no such model.
        """
        return self._image_settings(self._checked(model), model)

    def _checked(self, model: str) -> Any:
        library = self._import()
        names = self._models(library)
        if model.partition(".")[0] not in names:  # timm names its weights after a dot
            raise ModelError(
                f"{self.name} has no model {model!r}", remedy=_closest(self.name, model, names)
            )
        return library

    def _import(self) -> Any:
        declare_missing_operators()
        try:
            return importlib.import_module(self.name)
        except ImportError as error:
            raise MissingExtraError(self.name, f"a model of {self.name}", self.name) from error

    @abstractmethod
    def _models(self, library: Any) -> list[str]: ...

    @abstractmethod
    def _create(self, library: Any, model: str, arguments: Mapping[str, Any]) -> nn.Module: ...

    @abstractmethod
    def _image_settings(self, library: Any, model: str) -> ImageSettings: ...


class Timm(Library):
    """PyTorch Image Models."""

    name = "timm"

    def _models(self, library: Any) -> list[str]:
        models: list[str] = library.list_models()
        return models

    def _create(self, library: Any, model: str, arguments: Mapping[str, Any]) -> nn.Module:
        module: nn.Module = library.create_model(model, pretrained=False, **arguments)
        return module

    def _image_settings(self, library: Any, model: str) -> ImageSettings:
        settings = library.get_pretrained_cfg(model, allow_unregistered=True)
        if settings is None:
            return ImageSettings()
        return ImageSettings(tuple(settings.input_size), tuple(settings.mean), tuple(settings.std))


class Torchvision(Library):
    """Models of torchvision."""

    name = "torchvision"

    def _models(self, library: Any) -> list[str]:
        models: list[str] = library.models.list_models()
        return models

    def _create(self, library: Any, model: str, arguments: Mapping[str, Any]) -> nn.Module:
        builder = inspect.signature(library.models.get_model_builder(model))
        defaults = {name: None for name in ("weights_backbone",) if name in builder.parameters}
        module: nn.Module = library.models.get_model(model, weights=None, **defaults, **arguments)
        return module

    def _image_settings(self, library: Any, model: str) -> ImageSettings:
        weights = list(library.models.get_model_weights(model))
        transforms = weights[0].transforms() if weights else None
        crop = getattr(transforms, "crop_size", None)
        if transforms is None or not crop or not hasattr(transforms, "mean"):
            return ImageSettings()
        height, width = crop if len(crop) > 1 else (crop[0], crop[0])
        return ImageSettings((3, height, width), tuple(transforms.mean), tuple(transforms.std))


LIBRARIES: Mapping[str, Library] = {library.name: library for library in (Timm(), Torchvision())}
"""The libraries by the key that names a model of theirs."""


def _closest(library: str, model: str, names: list[str]) -> str:
    text = suggestion(model, names)
    if text.startswith("did you mean"):
        return text
    return f"`python -c 'import {library}'` lists them with `list_models()`"
