"""Quantizer of models that are loaded into memory as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.config.record import Record
from compressor.engine.contract import Estimate, PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.models.architecture import Architecture
from compressor.models.capabilities.linear_groups import Block, LinearGroups
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.contract import Family
from compressor.models.facts import ModelFacts
from compressor.models.families.module.config import is_program
from passes.awq.config import GROUP_SIZES, AwqConfig
from passes.awq.contract import ModelQuantizer, Parts, transposed_notes
from passes.common.field_problems import FieldProblem, is_set

if TYPE_CHECKING:
    from torch import nn


class WholeQuantizer(ModelQuantizer):
    """Quantization of a module of any family, block by block."""

    def __init__(
        self,
        config: AwqConfig,
        family: Family[Any],
        architecture: Record,
        layers: StreamedLayers | None = None,
    ) -> None:
        """Take the config and the model.

        Args:
            config: the pass's config.
            family: of the model.
            architecture: config of the model.
            layers: of a decoder that cannot be processed layer by layer after all.
        """
        self.config, self.family, self.layers = config, family, layers
        self.architecture = architecture
        groups = family.capability(LinearGroups, architecture)
        self.blocks: tuple[Block, ...] = () if groups is None else groups.blocks
        """Empty where the family does not state them: they are discovered from the module."""
        self.transposed: frozenset[str] = frozenset()
        """Weights that the class stores as [inputs, outputs], known once the module is checked."""

    def field_problems(self) -> list[FieldProblem]:
        """Return fields and formats for streamed checkpoints, and scaling without a source."""
        config = self.config
        names = [] if self.layers else ["vision", "lm_head", "serve_with"]
        problems = [
            FieldProblem(name, "for decoders whose layers run one at a time", f"remove `{name}`")
            for name in names
            if getattr(config, name) is not None
        ]
        if config.format != "compressed-tensors":
            problems.append(
                FieldProblem(
                    "format",
                    "AutoAWQ's format holds transformers checkpoints",
                    "set `format: compressed-tensors`",
                )
            )
        if self.blocks and is_set(config, "scaling") and not self._has_source():
            problems.append(
                FieldProblem(
                    "scaling",
                    "the model has no layer into which scales could be folded",
                    "remove `scaling`",
                )
            )
        return problems

    def _has_source(self) -> bool:
        """Return True if scales can be folded before at least one site."""
        return any(site.source is not None for block in self.blocks for site in block.sites)

    def estimate(self, parent: ModelFacts) -> Estimate:
        """Return the model without its size: the layers that fit the grid are not known yet."""
        notes = transposed_notes(self.transposed)
        return Estimate(replace(parent, size_bytes=None, integers=None), notes=notes)

    def check_layers(self, model: ModelDescription) -> None:
        """Check that linear layers can be quantized, and that they are enough of the model.

        Raises:
            RequirementError: none can, and the message names all with the reasons; or too few.
        """
        from compressor.models.checkpoint.loading import load_module

        self._check_module(load_module(model))

    def check_planned(self, parent: ModelFacts) -> None:
        """Check fields, and the linear layers of a class without stated groups, built without data.

        Programs of torch.export are opened when the step starts.

        Raises:
            RequirementError: fields do not apply, or no layer, or too few, can be quantized.
        """
        super().check_planned(parent)
        if self.blocks or is_program(self.architecture):
            return
        from passes.common.unweighted import build_without_values

        self._check_module(build_without_values(Architecture(self.family, self.architecture))[0])

    def _check_module(self, module: nn.Module) -> None:
        """Check that linear layers can be quantized, and that they are enough of the model.

        Args:
            module: the model; its values are not read.

        Raises:
            RequirementError: none can, and the message names all with the reasons; or too few.
        """
        from compressor.models.families.transformers.conv1d import replace_conv1d
        from passes.awq.linear_layers import other_matrices, select_layers
        from passes.common.changed_share import count_share

        self.transposed = replace_conv1d(module)
        selection = select_layers(self.blocks, module, self.config)
        if selection.blocks:
            share = count_share(module, selection.names)
            share.check(self.config.min_share, "quantize convolutions too with `type: qat`")
            return
        kept = selection.kept_float | other_matrices(module)
        lines = [f"{name}: {reason}" for name, reason in kept.items()]
        fitting = [
            str(size)
            for size in (*GROUP_SIZES, -1)
            if select_layers(
                self.blocks, module, self.config.model_copy(update={"group_size": size})
            ).blocks
        ]
        raise RequirementError(
            f"no linear layer of this {self.family.name} model can be quantized:\n"
            + "\n".join(f"    {line}" for line in lines or ["it has no linear layers"]),
            remedy=f"set `group_size` to one with which a layer fits: {', '.join(fitting)}"
            if fitting
            else "quantize weights and activations of all kinds of layers with `type: qat`",
        )

    def quantize(self, model: ModelDescription, out: Path, context: PassContext) -> PassOutput:
        """Quantize block by block; a killed run starts again. See ``ModelQuantizer``."""
        from passes.awq.whole_run import quantize_module

        return quantize_module(self.config, self.blocks, model, out, context, self._parts())

    def _parts(self) -> Parts:
        """Return what does not have the grid of the config: towers and the head of a decoder."""
        parts, config, layers = Parts(), self.config, self.layers
        if layers is None:
            return parts
        if config.vision is None:
            parts.kept_float.update(dict.fromkeys(layers.towers, "`vision` names no grid for it"))
        else:
            parts.grids.update(dict.fromkeys(layers.towers, config.vision))
        if config.lm_head is not None and layers.head_name is not None:
            parts.grids[layers.head_name] = config.lm_head
        return parts
