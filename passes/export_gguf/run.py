"""Export of a checkpoint to GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.graphs.decoder.stored_names import stored_names
from compressor.models.checkpoint.companions import copy_companions
from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.checkpoint.weight_files import read_weight_files
from compressor.models.families.transformers.modules import build_on_meta
from compressor.models.quantized.packed_checkpoint import PackedTensors
from compressor.models.quantized.weight_grid import is_packed
from compressor.runtimes.llamacpp.format import MODEL_FILE, PROJECTOR_FILE
from passes.export_gguf.architectures import ARCHITECTURES
from passes.export_gguf.block_types import NEAREST_REMEDY, packing_problem
from passes.export_gguf.blocks import unstorable_groups
from passes.export_gguf.config import ExportGgufConfig
from passes.export_gguf.metadata import Hyperparameters
from passes.export_gguf.projector import Projector, ProjectorPlan
from passes.export_gguf.requirements import image_normalization
from passes.export_gguf.tensors import TensorPlan, width_problems
from passes.export_gguf.tokenizer import read_vocabulary
from passes.export_gguf.write import (
    GgufContent,
    ProjectorContent,
    compare_file,
    write_file,
    write_projector,
)

_LISTED = 10
"""Layers that a message lists."""


class GgufExport:
    """Export of one checkpoint."""

    def __init__(self, config: ExportGgufConfig, tree: dict[str, Any], folder: Path) -> None:
        """Read the headers.

        Args:
            config: of the pass.
            tree: config.json, of a class in the table of architectures.
            folder: the checkpoint.
        """
        row = ARCHITECTURES[tree["model_type"]]
        self.config, self.folder = config, folder
        class_config = build_on_meta(tree).config
        fields = class_config.get_text_config().to_dict()
        self.model = Hyperparameters(row, tree["model_type"], fields)
        self.projector = None
        if row.projector is not None:
            vision = class_config.vision_config.to_dict()
            outputs, normalization = fields["hidden_size"], image_normalization(folder)
            self.projector = Projector(row, vision, outputs, normalization)
        weights = read_weight_files(folder)
        self.files = StoredTensors(weights, stored_names(tree, weights))
        self.packed = PackedTensors(self.files, tree) if is_packed(tree) else None

    def check(self) -> None:
        """Check that the file can hold every tensor and the tokenizer.

        Raises:
            RequirementError: it cannot; the message names every offender.
        """
        self._check_grids()
        self._check_groups()
        if self.config.tables == "q8_0" and (problems := list(width_problems(self.files))):
            raise RequirementError(
                f"`tables: q8_0` divides rows into blocks of 32: {'; '.join(problems)}",
                remedy="set `tables: float16`",
            )
        self.projector_content(self.content())

    def content(self) -> GgufContent:
        """Return what the file holds.

        Raises:
            RequirementError: the architecture has no place for a tensor, or llama.cpp has no such
                tokenizer.
        """
        plan = TensorPlan(self.config, self.model, self.files, self.packed)
        row = self.model.architecture
        vocabulary = read_vocabulary(
            self.folder,
            self.model.fields["vocab_size"],
            self.config.pre_tokenizer,
            row.three_digits,
        )
        return GgufContent(self.config.name, self.model, plan.tensors(), vocabulary, self.folder)

    def projector_content(self, content: GgufContent) -> ProjectorContent | None:
        """Return what the file of the vision tower holds; None without one.

        Args:
            content: of the language model's file.

        Raises:
            RequirementError: llama.cpp has no place for a tensor.
        """
        if self.projector is None:
            return None
        plan = ProjectorPlan(self.config, self.projector, self.files, self.packed)
        name = content.name or content.default_name
        return ProjectorContent(name, self.projector, plan.tensors(), self.folder)

    def _check_grids(self) -> None:
        if self.packed is None:
            return
        packed = self.packed
        layers = ((name, packed.grid(name), packed.size(name)[1]) for name in packed.layers)
        if problem := packing_problem(layers):
            raise RequirementError(problem, remedy=NEAREST_REMEDY)

    def _check_groups(self) -> None:
        """Check that scales and offsets are float16 numbers, layer by layer."""
        if self.packed is None:
            return
        problems = [
            f"\n    {name}: {problem}"
            for name in self.packed.layers
            if (problem := unstorable_groups(self.packed.layer(name))) is not None
        ]
        if problems:
            more = f"\n    … and {len(problems) - _LISTED} more" if problems[_LISTED:] else ""
            raise RequirementError(
                "blocks of GGUF hold scales and offsets in float16, and these layers would be "
                f"rounded again:{''.join(problems[:_LISTED])}{more}",
                remedy="set `gguf_scales: true` in the `awq` step; for scales in bfloat16 also "
                "`dtype: float16`",
            )

    def write(self, out: Path, context: PassContext) -> PassOutput:
        """Write the files, and compare every tensor in them with the checkpoint's."""
        content, file = self.content(), out / MODEL_FILE
        if self.model.positions < self.model.fields["max_position_embeddings"]:
            context.note(
                f"context length {self.model.positions}: llama.cpp attends to all positions, and "
                "the model to a sliding window of that length"
            )
        write_file(content, file, lambda done, all_: context.progress("write", done, all_, {}))
        compared = compare_file(
            file, content.tensors, lambda done, all_: context.progress("compare", done, all_, {})
        )
        copy_companions(self.folder, out)  # with which this program encodes prompts
        rounded = compared.pop("rounded")
        summary = {
            "architecture": self.model.architecture.name,
            "file_type": content.main_type,
            "context_length": self.model.positions,
            "tokenizer": f"{content.vocabulary.model}, {content.vocabulary.pre_tokenizer}",
            **compared,
            "parity": {
                "equal_tensors": len(content.tensors) - len(rounded),
                "rounded_tables": rounded,
            },
        }
        if (projector := self.projector_content(content)) is not None:
            summary["projector"] = _write_projector(projector, out, context)
        return PassOutput(summary)


def _write_projector(content: ProjectorContent, out: Path, context: PassContext) -> dict[str, Any]:
    """Write the file of a vision tower, compare it, and return what the report states of it."""
    file = out / PROJECTOR_FILE
    write_projector(
        content, file, lambda done, all_: context.progress("write vision", done, all_, {})
    )
    compared = compare_file(
        file, content.tensors, lambda done, all_: context.progress("compare vision", done, all_, {})
    )
    return {
        "kind": content.projector.architecture.projector,
        "size_bytes": file.stat().st_size,
        "types": compared["types"],
        "parity": {"equal_tensors": len(content.tensors)},
    }
