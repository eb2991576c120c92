"""From the folder of a model that fits into memory to a packed one's, one block after another."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.artifacts.store import Artifact
from compressor.config.discovery import FAMILIES, load
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import NumericalError
from compressor.models.capabilities.linear_groups import Block
from compressor.models.checkpoint.files import WEIGHTS, write_description
from compressor.models.checkpoint.loading import load_module, read_description
from compressor.models.checkpoint.weights import tensors_of
from compressor.models.contract import Family
from compressor.models.quantized.description import QUANTIZATION_CONFIG
from compressor.models.quantized.packed_formats import FORMATS
from compressor.models.quantized.packed_linear import PackedLinear
from passes.awq.fitting import fitting, linears_of
from passes.awq.layer import Exact, LayerRounding, Run
from passes.awq.positions import Deciding, Depending, deciding
from passes.awq.samples import CAPTURED_BYTES, Captures, samples_of
from passes.awq.shards import cast, write_packed
from passes.awq.site import Choices
from passes.awq.step import AwqConfig
from passes.common.accuracy import tensors_from_batch
from passes.common.setup import prepare_torch


def quantize_whole(
    config: AwqConfig, parent: Artifact, out: Path, context: PassContext
) -> PassOutput:
    """Write the packed form of ``parent`` into ``out``.

    Raises:
        DataError: there are fewer samples than asked for.
        NumericalError: activations are not finite, or numbers too large for ``config.dtype``.
    """
    prepare_torch(context)
    name, described = read_description(parent.model)
    family: Family[Any] = load(FAMILIES, name)
    module = load_module(parent.model)
    stored = next(one.dtype for one in module.parameters() if one.is_floating_point())
    module = module.float()
    kind, (grid,) = FORMATS[config.format], config.grids
    found = fitting(family.linear_blocks(described), module, kind, grid)
    for layer, why in found.kept_float.items():
        context.note(f"{layer} stays as it is: {why}")
    choices = Choices.of(config, stored if config.dtype is None else getattr(torch, config.dtype))
    run = _Run(config, module, choices, family.outputs(described), context)
    run.round(found.blocks)
    others = {
        name: value
        for name, value in tensors_of(module).items()
        if name.removesuffix(".weight") not in run.packed
    }
    out.mkdir(parents=True, exist_ok=True)
    write_packed(out / WEIGHTS, "", others, choices.other, run.packed, kind)
    (out / WEIGHTS).chmod(0o644)  # the library makes it 0600
    quantization = kind.config({grid: sorted(run.packed)}, sorted(found.kept_float))
    write_description(
        family.name, family.version, described, out, {QUANTIZATION_CONFIG: quantization}
    )
    sizes = {name: one.integers_OI.shape for name, one in run.packed.items()}
    weights = sum(size.numel() for size in sizes.values())
    bits = sum(size.numel() * grid.effective_bits(size[1]) for size in sizes.values())
    return PassOutput(
        {
            "effective_bits": round(bits / weights, 4),
            "packed_weights": weights,
            "format": config.format,
            "samples_sha256": run.digest,
            "kept_float": [{"linear": name, "why": why} for name, why in found.kept_float.items()],
            "layers": run.report,
        }
    )


class _Run:
    """One model on its way."""

    def __init__(
        self,
        config: AwqConfig,
        module: nn.Module,
        choices: Choices,
        outputs: tuple[str, ...],
        context: PassContext,
    ) -> None:
        self.module, self.choices, self.context = module, choices, context
        (self.grid,) = config.grids
        samples = samples_of(config, context)
        self.inputs: list[dict[str, Tensor]] = []
        for batch in samples.batches("calibrate"):
            tensors = tensors_from_batch(batch, torch.device("cpu"))
            self.inputs.append({name: tensors[name] for name in samples.dataset.input_names})
        self.digest = samples.digest
        linears = linears_of(module.requires_grad_(False))
        for one in linears.values():
            one.weight.requires_grad_()
        self.deciding: list[Deciding] = [
            deciding(module, linears, outputs, inputs) for inputs in self.inputs
        ]
        module.requires_grad_(False)
        self.exact = deepcopy(module) if config.drift else None
        """The float model."""
        self.packed: dict[str, PackedLinear] = {}
        """By name in the model."""
        self.report: list[dict[str, Any]] = []
        """A row for each linear layer."""

    @torch.inference_mode()
    def round(self, blocks: tuple[Block, ...]) -> None:
        """All blocks; tensors that are not packed are rounded to what the file holds of them first."""
        packed = {
            f"{block.full(name)}.weight"
            for block in blocks
            for site in block.sites
            for name in site.linears
        }
        for name, value in self.module.state_dict().items():
            if name not in packed and value.is_floating_point():
                value.copy_(cast(name, value, self.choices.other))
        for number, block in enumerate(blocks):
            rounding = self._block(block)
            self.packed |= {block.full(name): one for name, one in rounding.packed.items()}
            self.report += [
                {"layer": number, "block": block.name, **row} for row in rounding.report
            ]
            error = sum(row["error"] for row in rounding.report) / len(rounding.report)
            self.context.progress("blocks", number + 1, len(blocks), {"error": error})

    def _block(self, block: Block) -> LayerRounding:
        captures = Captures(self.context.work / "captures", CAPTURED_BYTES)
        exact = None
        if self.exact is not None:
            exact = Exact(captures)
            for batch, run in self._runs(self.exact):
                exact.remember(self.exact.get_submodule(block.name), block.sites, batch, run)
        rounding = LayerRounding(
            self.module.get_submodule(block.name),
            block.sites,
            partial(self._runs, self.module),
            Depending(block, self.deciding),
            captures,
            exact,
            {site.name: self.grid for site in block.sites},
            self.choices,
        )
        try:
            rounding.run()
        except NumericalError as error:
            raise NumericalError(
                f"{block.name or 'the model'}: {error.what}", remedy=error.remedy
            ) from error
        captures.close()
        return rounding

    def _runs(self, module: nn.Module) -> Iterator[tuple[int, Run]]:
        """Every batch through the whole model."""
        for batch, inputs in enumerate(self.inputs):
            yield batch, partial(module, **inputs)
