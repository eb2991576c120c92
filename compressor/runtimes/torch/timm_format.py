"""Format of folders of timm, as its hub stores them: config.json, and weights in safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compressor.errors import ModelError
from compressor.models.families.module.config import BATCH, ModuleConfig
from compressor.runtimes.foreign.contract import json_object_or_empty
from compressor.runtimes.format_records import ModuleSource
from compressor.runtimes.formats import Format

if TYPE_CHECKING:
    from compressor.runtimes.tensor_listing import ListedTensor

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class TimmFolder(Format):
    """A model of timm; a pipeline takes it over as a module."""

    name = "timm"
    summary = "a model of timm: config.json with its architecture, beside safetensors"
    accepted_as: ClassVar[tuple[str, ...]] = ("torch",)
    precedence: ClassVar[int] = 1

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder whose config.json names an architecture of timm."""
        config = json_object_or_empty(path / _CONFIG)
        has_timm_keys = not config.keys().isdisjoint({"pretrained_cfg", "num_features"})
        return "architecture" in config and has_timm_keys and "model_type" not in config

    def title(self, path: Path) -> str:
        """Return the architecture."""
        return f"a model of timm: {json_object_or_empty(path / _CONFIG).get('architecture')}"

    def files(self, path: Path) -> Mapping[str, Path]:
        """Return config.json and the weights."""
        names = [_CONFIG, *(name for name in _WEIGHTS[:1] if (path / name).is_file())]
        return {name: path / name for name in names}

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return architecture, classes and input size."""
        config = json_object_or_empty(path / _CONFIG)
        labels = {"architecture": "architecture", "classes": "num_classes", "head": "global_pool"}
        rows = [(label, str(config[key])) for label, key in labels.items() if key in config]
        pretrained = config.get("pretrained_cfg")
        if isinstance(pretrained, dict) and "input_size" in pretrained:
            rows.append(("input size", str(pretrained["input_size"])))
        return rows

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return the tensors of the safetensors file; None if the weights are pickled."""
        from compressor.runtimes.tensor_listing import safetensors_tensors

        file = path / _WEIGHTS[0]
        return safetensors_tensors([file]) if file.is_file() else None

    def notes(self, path: Path) -> tuple[str, ...]:
        """Return mean and standard deviation of the pictures that the model takes."""
        settings = json_object_or_empty(path / _CONFIG).get("pretrained_cfg")
        if not isinstance(settings, dict) or not {"mean", "std"} <= settings.keys():
            return ()
        size = settings.get("input_size", ["?"])[-1]
        return (
            f"the model takes pictures as of {{source: images, image_size: {size}, "
            f"mean: {settings['mean']}, std: {settings['std']}}}",
        )

    def module_source(self, path: Path) -> ModuleSource:
        """Return the module with the weights of the folder.

        Raises:
            ModelError: timm lacks the architecture, or the weights do not fit.
            MissingExtraError: timm is not installed.
        """
        from compressor.models.families.module.probing import complete, unfilled_module
        from compressor.models.families.module.weights import check_weights, read_weights

        weights = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
        if weights is None:
            raise ModelError(
                f"{path} holds no weights", remedy=f"copy {_WEIGHTS[0]} beside {_CONFIG}"
            )
        config = complete(_config(path), None)
        check_weights(unfilled_module(config), read_weights(weights)[0], weights)
        settings = json_object_or_empty(path / _CONFIG).get("pretrained_cfg")
        known = settings if isinstance(settings, dict) else {}
        fields = {name: known[name] for name in ("mean", "std") if name in known}
        return ModuleSource(config, weights, self.notes(path), fields)


def _config(path: Path) -> ModuleConfig:
    """Return how the module is built; arguments are those that timm itself reads."""
    from compressor.models.families.module.config import NamedInput
    from compressor.models.families.module.libraries import LIBRARIES

    tree = json_object_or_empty(path / _CONFIG)
    architecture = str(tree["architecture"])
    arguments = tree.get("model_args") or {}
    if isinstance(tree.get("num_classes"), int):
        arguments = {**arguments, "num_classes": tree["num_classes"]}
    settings = tree.get("pretrained_cfg")
    size = settings.get("input_size") if isinstance(settings, dict) else None
    shape = tuple(size or LIBRARIES["timm"].image_settings(architecture).shape)
    return ModuleConfig(
        timm=architecture,
        arguments=arguments,
        inputs=(NamedInput(name="image", shape=(BATCH, *shape)),),
    )
