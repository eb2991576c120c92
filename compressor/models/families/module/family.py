"""Family ``module``: any ``torch.nn.Module``, built by a function of the user's or by a library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from compressor.models.capabilities.capability import C, Capability
from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.capabilities.signature import Signature
from compressor.models.contract import Family
from compressor.models.families.module.config import Counts, ModuleConfig, replaced

if TYPE_CHECKING:
    from torch import nn

_PROGRAM_AXES_REMEDY = (
    "a program of torch.export has fixed sizes: cut the module that it was exported from, "
    "`model: {python: my_model.py:build, weights: …, inputs: …}`"
)


class Module(Family[ModuleConfig]):
    """An own module, or a model of timm or torchvision.

    What was counted when the module was built last is kept in its config, so that a model folder is
    described without running code.
    """

    name = "module"
    Config = ModuleConfig
    presets: ClassVar[Mapping[str, ModuleConfig]] = {}

    def signature(self, config: ModuleConfig) -> Signature:
        """Return the inputs and outputs of the config."""
        config, counts = _counted(config)
        return Signature(
            config.input_specs(), tuple(config.output_paths), config.unit, counts.classes
        )

    def parameters(self, config: ModuleConfig) -> dict[str, int]:
        """Return the parameters by child module."""
        return dict(_counted(config)[1].parameters)

    def macs(self, config: ModuleConfig) -> int:
        """Return the multiply-accumulates of one sample, or of one token."""
        return _counted(config)[1].macs

    def user_code(self, config: ModuleConfig) -> str | None:
        """Return the Python file that builds the module, or its program of torch.export."""
        return config.python if config.program is None else config.title

    def build(self, config: ModuleConfig) -> nn.Module:
        """Return the module; see ``building.py``."""
        from compressor.models.families.module.building import build_module

        return build_module(_counted(config)[0] if not config.outputs else config)

    def training_problem(self, config: ModuleConfig) -> tuple[str, str] | None:
        """Return a problem for a program of torch.export, and code that fails in training mode."""
        if config.program is not None:
            return (
                "the model is a program, which is fixed to its evaluation mode",
                "train the module that it was exported from: `model: {python: …}`",
            )
        from compressor.models.families.module.training import training_failure

        failure = training_failure(_counted(config)[0].model_dump_json())
        if failure is None:
            return None
        return failure, "correct the module or `inputs`: training runs it in training mode"

    def can_discover(self, kind: type[Capability], config: ModuleConfig) -> bool:
        """Return True, but for axes of a program of torch.export, whose sizes are fixed."""
        is_fixed = config.program is not None and kind is CuttableAxes
        return not is_fixed and super().can_discover(kind, config)

    def remedy(self, kind: type[Capability], config: ModuleConfig) -> str:
        """Return the change that would provide a capability, such as axes of a program."""
        if config.program is not None and kind is CuttableAxes:
            return _PROGRAM_AXES_REMEDY
        return super().remedy(kind, config)

    def adopt(self, capability: C, config: ModuleConfig, model: LoadedModel) -> C | None:
        """Return a discovered capability; axes with the shapes of the tensors that they cut."""
        if not isinstance(capability, CuttableAxes):
            return capability
        from compressor.models.families.module.axes import described_axes

        return cast("C | None", described_axes(capability.axes, _counted(config)[0], model))

    @property
    def has_own_layout(self) -> bool:
        """False: ``save`` completes the config alone."""
        return False

    def save(
        self,
        module: nn.Module,
        config: ModuleConfig,
        folder: Path,
        companions: Path | None = None,
    ) -> None:
        """Write description and weights, with the counts of the config."""
        super().save(module, _counted(config)[0], folder, companions)

    def slim(self, config: ModuleConfig, **dimensions: Any) -> ModuleConfig:
        """Return the config with fields replaced; another builder replaces the one that was set."""
        return replaced(config, dimensions)


def _counted(config: ModuleConfig) -> tuple[ModuleConfig, Counts]:
    """Return a config with outputs and counts; the module is built where they are of another."""
    counts = config.counts
    if counts is None or counts.of != config.digest or not config.outputs:
        from compressor.models.families.module.probing import counted

        config = counted(config)
        counts = config.counts
    assert counts is not None  # noqa: S101 - `counted` sets it
    return config, counts
