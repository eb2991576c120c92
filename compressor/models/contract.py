"""Contract of a model family: how models of one architecture are described, built and saved.

A family is found through the entry-point group ``autoglm_compress.families``. Importing its module
must not import torch: methods that build modules import it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast

from compressor.config.record import Record
from compressor.errors import RequirementError
from compressor.models.capabilities.capability import C, Capability
from compressor.models.capabilities.cuttable_axes import AxisKind
from compressor.models.capabilities.discovery import derive, discover, is_discoverable
from compressor.models.capabilities.integer_storage import IntegerStorage
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.capabilities.signature import Signature

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from compressor.models.checkpoint.weight_files import WeightFiles
    from compressor.models.quantized.packed_linear import PackedLinear

F = TypeVar("F", bound=Record)
UNSUPPORTED = "unsupported"
"""Type of a config's validation error that is no mistake: the family lacks that kind of model."""


@dataclass(frozen=True, slots=True)
class StoredArchitecture(Generic[F]):
    """Result of comparing the headers of weight files with a config."""

    config: F
    """The config as the weights have it, such as an untied head."""
    names: Mapping[str, str] | None = None
    """Name of each tensor in the module to its name in the files; None if they are the same."""
    problems: tuple[str, ...] = ()
    """Tensors that are missing, unexpected, or of another shape."""
    notes: tuple[str, ...] = ()
    """Differences between config.json and the weights that were resolved, for reports."""


class FileNames(Protocol):
    """Names in the files of the tensors of a module, which some families convert while loading."""

    def holds(self, name: str) -> bool:
        """Return True if the files hold a tensor of the module; of tied ones they may hold one."""

    def tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the module by their names in the files."""

    def packed(self, layers: Mapping[str, PackedLinear]) -> dict[str, PackedLinear]:
        """Return packed layers by their names in the files."""


CapabilityTable = Mapping[type[Capability], Callable[[], Capability | None]]
"""Maps a capability's class to the function that creates it, called on each lookup; it returns None
for a model that lacks the capability."""


class Family(ABC, Generic[F]):
    """Models of one architecture.

    The methods below describe, build and save a model. What passes need beyond that, such as the
    axes that can be cut, is a capability: the family lists those it provides in ``capabilities``.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Increase it when, for the same config, initial weights or results may change."""
    Config: ClassVar[type[Record]]
    """The architecture, as saved in config.json."""
    presets: ClassVar[Mapping[str, Record]]
    """Named configs, such as those of published models."""

    @abstractmethod
    def signature(self, config: F) -> Signature:
        """Return inputs and outputs, and whether ``macs`` counts per sample or per token."""

    @abstractmethod
    def parameters(self, config: F) -> dict[str, int]:
        """Return the parameters by part, tied weights counted once, without importing torch."""

    @abstractmethod
    def macs(self, config: F) -> int:
        """Return the multiply-accumulates of one forward pass of one unit; 0 if unknown."""

    @abstractmethod
    def build(self, config: F) -> nn.Module:
        """Return the module, initialised from torch's global generator.

        ``forward(*inputs)`` takes the tensors of the signature's inputs by keyword and returns a
        dict with at least the signature's outputs. It may return others, such as hidden states.
        """

    def capabilities(self, config: F) -> CapabilityTable:
        """Return the capabilities that the family provides itself."""
        return {}

    def capability(self, kind: type[C], config: F, model: LoadedModel | None = None) -> C | None:
        """Return a capability of a model; None if the model lacks it.

        Args:
            kind: the capability.
            config: the model's architecture.
            model: the loaded module. If neither the family nor the signature provides the
                capability, it is discovered there. Without a module torch is not imported.
        """
        inherent: CapabilityTable = {}
        if not self.has_own_layout:
            inherent = {IntegerStorage: IntegerStorage}
        provide = {**inherent, **self.capabilities(config)}.get(kind)
        if provide is not None:
            return cast("C | None", provide())
        derived = derive(kind, self.signature(config))
        if derived is not None or model is None:
            return derived
        discovered = discover(kind, model)
        return None if discovered is None else self.adopt(discovered, config, model)

    def training_problem(self, config: F) -> tuple[str, str] | None:
        """Return why a model cannot be trained, and the remedy; None if it can be."""
        return None

    def can_discover(self, kind: type[Capability], config: F) -> bool:
        """Return True if a capability may be discovered once a module of a config is loaded.

        What passes write into the config needs a family that describes it there: see ``adopt``.
        """
        return is_discoverable(kind) and (
            not kind.in_config or type(self).adopt is not Family.adopt
        )

    def adopt(self, capability: C, config: F, model: LoadedModel) -> C | None:
        """Return a discovered capability as this family's configs describe it, or None.

        Args:
            capability: what was discovered.
            config: the model's architecture.
            model: the loaded module.
        """
        return None if capability.in_config else capability

    def possible_axis_kinds(
        self,
        config: F,
        wanted: Collection[AxisKind],
    ) -> frozenset[AxisKind] | None:
        """Return the kinds of axes that may be discovered; None if that shows in a run alone.

        Args:
            config: the model's architecture.
            wanted: kinds, one of which is enough: all kinds are returned if none of them is there.
        """
        return None

    def require(self, kind: type[C], config: F, model: LoadedModel | None = None) -> C:
        """Return a capability that the model must have; see ``capability`` for arguments.

        Raises:
            RequirementError: the model lacks it.
        """
        capability = self.capability(kind, config, model)
        if capability is None:
            raise RequirementError(
                f"this model of the family {self.name} has no {kind.label}",
                remedy=self.remedy(kind, config),
            )
        return capability

    def remedy(self, kind: type[Capability], config: F) -> str:
        """Return the change that would provide a capability that a model lacks."""
        return kind.remedy

    def user_code(self, config: F) -> str | None:
        """Return the Python file of the user's that building a model runs; None for none.

        It is run only where ``compressor/config/permission.py`` allows it.
        """
        return None

    def compare_headers(self, config: F, weights: WeightFiles) -> StoredArchitecture[F]:
        """Compare a config with the headers of the weight files, without torch.

        By default nothing is compared: ``load`` names what does not fit.
        """
        return StoredArchitecture(config)

    def load(self, config: F, folder: Path) -> nn.Module:
        """Return the module with the weights that ``save`` wrote.

        Weights keep the dtypes of the files, and tied weights stay tied.

        Raises:
            ModelError: tensors are missing, unexpected, or of another shape or kind; the message
                names all of them.
        """
        from compressor.models.checkpoint.weights import fill

        return fill(self.build(config), folder)

    def save(
        self,
        module: nn.Module,
        config: F,
        folder: Path,
        companions: Path | None = None,
    ) -> None:
        """Write description and weights into a folder; equal weights give equal bytes.

        Args:
            module: a module of this family.
            config: its architecture.
            folder: the folder to write to.
            companions: a model folder whose other files, such as the tokenizer's, are copied by
                families that have such files.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        from compressor.models.checkpoint.layout import write_description
        from compressor.models.checkpoint.weights import save_weights

        save_weights(module, folder)
        write_description(self.name, self.version, config, folder)

    @property
    def has_own_layout(self) -> bool:
        """True if models are stored in another layout than that of ``Family.save``."""
        return type(self).save is not Family.save

    def write_packed_config(
        self, config: F, folder: Path, parent: Path, fields: Mapping[str, Any]
    ) -> Sequence[str]:
        """Write the config.json of a model with packed layers, and the files beside its weights.

        Args:
            config: the architecture.
            folder: the folder to write to.
            parent: folder of the float model.
            fields: ``quantization_config``, and the ``dtype`` of the tensors that are not packed.

        Returns:
            Notes for the user on what consumers cannot load.
        """
        from compressor.models.checkpoint.layout import write_description

        packing = {name: value for name, value in fields.items() if name != "dtype"}
        write_description(self.name, self.version, config, folder, packing)
        return ()

    def file_names(self, module: nn.Module, config: F, folder: Path) -> FileNames | None:
        """Return the names in the files of a module's tensors; None where they are the module's.

        Args:
            module: a module of the family.
            config: its architecture.
            folder: the model folder that it was loaded from.
        """
        return None

    def slim(self, config: F, **dimensions: Any) -> F:
        """Return the config with some of its top-level fields replaced (`student: {slim: …}`).

        Raises:
            pydantic.ValidationError: the dimensions do not fit together.
        """
        return type(config).model_validate_json(
            json.dumps(config.model_dump(mode="json") | dimensions)
        )
