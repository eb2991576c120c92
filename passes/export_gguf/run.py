"""Export of a checkpoint to GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.graphs.decoder.stored_names import stored_names
from compressor.models.checkpoint.companions import copy_licences
from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.checkpoint.weight_files import read_weight_files
from compressor.models.families.transformers.modules import build_on_meta
from compressor.models.quantized.packed_checkpoint import PackedTensors
from compressor.models.quantized.weight_grid import is_packed
from compressor.runtimes.llamacpp.format import MODEL_FILE
from passes.export_gguf.architectures import ARCHITECTURES
from passes.export_gguf.block_types import NEAREST_REMEDY, packing_problem
from passes.export_gguf.blocks import unstorable_groups
from passes.export_gguf.config import ExportGgufConfig
from passes.export_gguf.metadata import Hyperparameters
from passes.export_gguf.tensors import TensorPlan, width_problems
from passes.export_gguf.tokenizer import read_vocabulary
from passes.export_gguf.write import GgufContent, compare_file, write_file

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
        fields = build_on_meta(tree).config.get_text_config().to_dict()
        self.model = Hyperparameters(row, tree["model_type"], fields)
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
        self.content()

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
        """Write the file, and compare every tensor in it with the checkpoint's."""
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
        copy_licences(self.folder, out)
        rounded = compared.pop("rounded")
        return PassOutput(
            {
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
        )
