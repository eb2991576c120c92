"""Family ``transformers``: checkpoints of the transformers library.

Decoders with a row in ``layouts.py`` are described by it, without torch. Every other class is
described by building it on the device ``meta`` (``generic/``).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, cast

from compressor.models.capabilities.attention_heads import AttentionHeads
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.capability import C
from compressor.models.capabilities.cuttable_axes import AxisKind, CuttableAxes
from compressor.models.capabilities.integer_storage import IntegerStorage
from compressor.models.capabilities.layer_kinds import LayerKinds
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.contract import CapabilityTable, Family, FileNames, StoredArchitecture
from compressor.models.families.transformers import arithmetic
from compressor.models.families.transformers.axes import checkpoint_axes
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.decoder_settings import SLIDING, decoder_settings
from compressor.models.families.transformers.headers import compare_headers
from compressor.models.families.transformers.images import image_inputs
from compressor.models.families.transformers.layouts import (
    TIED_FLAG,
    Layout,
    decoder_shape,
    is_tabulated,
)
from compressor.models.families.transformers.linear_groups import decoder_blocks, decoder_layers
from compressor.models.families.transformers.presets import PRESETS
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from compressor.models.checkpoint.weight_files import WeightFiles
    from compressor.models.families.transformers.generic.description import ClassDescription

_ATTENTION_CAP = "attn_logit_softcapping"


class Transformers(Family[CheckpointConfig]):
    """Models of Hugging Face transformers, of any class that the library itself has.

    `model: {path: …}` is a folder that `save_pretrained` wrote; outputs are loaded by
    `from_pretrained`. Inputs and outputs follow from the task of the class. MACs are counted per
    token for language models, and per sample for others. The presets are small random models, for
    trying out pipelines.
    """

    name = "transformers"
    Config = CheckpointConfig
    presets: ClassVar[Mapping[str, CheckpointConfig]] = PRESETS

    def signature(self, config: CheckpointConfig) -> Signature:
        """Return the inputs and outputs of the class's task.

        A causal language model takes tokens, and arrays of images if it has a vision tower; its
        logits of each next token are [B, T, vocabulary].
        """
        tree = config.tree
        if not is_tabulated(tree):
            return _describe(tree).signature
        vocabulary = decoder_shape(tree).vocabulary
        tokens = InputSpec("input_ids", "int64", ("batch", "tokens"), below=vocabulary)
        return Signature((tokens, *image_inputs(tree)), ("logits",), unit="token")

    def parameters(self, config: CheckpointConfig) -> dict[str, int]:
        """Return the parameters by part, such as embedding, layers, norm, head and vision tower."""
        tree = config.tree
        if not is_tabulated(tree):
            return dict(_describe(tree).parameters)
        return arithmetic.parameters(tree)

    def macs(self, config: CheckpointConfig) -> int:
        """Return the MACs of one token of a language model, or of one sample of another model.

        Those of a language model leave out attention scores, which grow with the context.
        """
        tree = config.tree
        if not is_tabulated(tree):
            return _describe(tree).macs
        return arithmetic.macs_per_token(tree)

    def build(self, config: CheckpointConfig) -> nn.Module:
        """Return a module of the class that config.json names."""
        from compressor.models.families.transformers.modules import build_module

        return build_module(config.tree)

    def compare_headers(
        self, config: CheckpointConfig, weights: WeightFiles
    ) -> StoredArchitecture[CheckpointConfig]:
        """Compare names and shapes of the tensors; tied weights are tied if they are equal."""
        tree = config.tree
        if not is_tabulated(tree):
            return _compare_with_class(config, weights)
        comparison = compare_headers(tree, weights)
        if decoder_shape(tree).tied != comparison.tied:
            text = json.dumps({**tree, TIED_FLAG: comparison.tied})
            config = CheckpointConfig.model_validate_json(text)
        return StoredArchitecture(
            config, comparison.stored_names, comparison.problems, comparison.notes
        )

    def load(self, config: CheckpointConfig, folder: Path) -> nn.Module:
        """Load by the names and rules of ``from_pretrained``; what does not fit is an error."""
        from compressor.models.families.transformers.checkpoint import Checkpoint

        return Checkpoint(folder, config.tree).load_all()

    def save(
        self,
        module: nn.Module,
        config: CheckpointConfig,
        folder: Path,
        companions: Path | None = None,
    ) -> None:
        """Save through ``save_pretrained``, in the dtype of config.json.

        Tokenizer, processor and licence are copied from ``companions``.
        """
        from compressor.models.families.transformers.modules import save_checkpoint

        save_checkpoint(module, config.tree, folder, companions)

    def adopt(self, capability: C, config: CheckpointConfig, model: LoadedModel) -> C | None:
        """Return a discovered capability; axes with the fields of config.json that count units."""
        if not isinstance(capability, CuttableAxes):
            return capability
        from compressor.models.families.transformers.generic.axes import described_axes

        return cast("C | None", described_axes(capability.axes, config, model))

    def possible_axis_kinds(
        self, config: CheckpointConfig, wanted: Collection[AxisKind]
    ) -> frozenset[AxisKind] | None:
        """Return kinds of axes that fields of config.json count, from the class without weights."""
        from compressor.models.families.transformers.generic.possible_axes import (
            possible_axis_kinds,
        )

        return possible_axis_kinds(config.tree, wanted)

    def write_packed_config(
        self, config: CheckpointConfig, folder: Path, parent: Path, fields: Mapping[str, Any]
    ) -> Sequence[str]:
        """Write config.json as transformers does, and copy tokenizer, processor and licence."""
        from compressor.models.families.transformers.modules import write_packed_config
        from compressor.models.families.transformers.packed_loading import loading_fields

        quantization, notes = loading_fields(config.tree, fields[QUANTIZATION_CONFIG])
        fields = {**fields, QUANTIZATION_CONFIG: quantization}
        write_packed_config(config.tree, folder, parent, fields)
        return notes

    def file_names(
        self, module: nn.Module, config: CheckpointConfig, folder: Path
    ) -> FileNames | None:
        """Return the names in the files of the checkpoint that a module was loaded from."""
        from compressor.models.families.transformers.checkpoint import Checkpoint

        return Checkpoint(folder, config.tree).file_names(module)

    def capabilities(self, config: CheckpointConfig) -> CapabilityTable:
        """Return what the tables state; what they do not is discovered from the module.

        A tabulated vision tower has no linear groups: its layers are rounded to the nearest.
        """
        tree = config.tree
        if not is_tabulated(tree):
            return {
                LayerKinds: lambda: _describe(tree).layer_kinds,
                IntegerStorage: IntegerStorage,
                CachedGeneration: lambda: _cached_generation(tree),
                StreamedLayers: lambda: _streamed_layers(tree),
            }
        return {
            CuttableAxes: lambda: CuttableAxes(tuple(checkpoint_axes(tree))),
            LinearGroups: lambda: LinearGroups(decoder_blocks(tree)),
            StreamedLayers: lambda: decoder_layers(tree),
            CachedGeneration: lambda: _generation(tree),
            AttentionHeads: lambda: _attention_heads(tree),
            LayerKinds: lambda: LayerKinds(False, embedding_tables=not decoder_shape(tree).tied),
        }


def _describe(tree: Mapping[str, Any]) -> ClassDescription:
    from compressor.models.families.transformers.generic.description import describe

    return describe(tree)


def _cached_generation(tree: Mapping[str, Any]) -> CachedGeneration | None:
    from compressor.models.families.transformers.generic.generation import cached_generation

    return cached_generation(tree)


def _streamed_layers(tree: Mapping[str, Any]) -> StreamedLayers | None:
    from compressor.models.families.transformers.generic.decoder_parts import streamed_layers

    return streamed_layers(tree)


def _compare_with_class(
    config: CheckpointConfig, weights: WeightFiles
) -> StoredArchitecture[CheckpointConfig]:
    from compressor.models.families.transformers.generic.headers import compare_with_class

    comparison = compare_with_class(config.tree, weights)
    if comparison.tree != config.tree:
        config = CheckpointConfig.model_validate_json(json.dumps(comparison.tree))
    notes = comparison.notes
    if not comparison.problems and not _describe(config.tree).macs:
        notes = (
            *notes,
            "the class is large and does not run without values, so it was not run: its inputs and "
            "outputs follow from its task alone, and its MACs are not known",
        )
    return StoredArchitecture(config, None, comparison.problems, notes)


def _generation(tree: Mapping[str, Any]) -> CachedGeneration:
    decoder = decoder_shape(tree)
    return CachedGeneration(
        context_length=decoder_settings(tree).positions,
        layers=decoder.layers,
        key_heads=decoder.key_heads,
        head_width=decoder.head_width,
        image_inputs=image_inputs(tree),
    )


def _attention_heads(tree: Mapping[str, Any]) -> AttentionHeads | None:
    """Return the heads; None where the class caps scores or attends to later tokens."""
    decoder, settings = decoder_shape(tree), decoder_settings(tree)
    if _ATTENTION_CAP in settings.softcaps or not settings.is_causal:
        return None
    window = settings.window
    return AttentionHeads(
        layers_name=decoder.layout.layers_name,
        layers=decoder.layers,
        key_heads=decoder.key_heads,
        heads_per_key=decoder.heads_per_key,
        head_width=decoder.head_width,
        hidden=decoder.hidden,
        positions=settings.positions,
        output_norm=_attention_output_norm(decoder.layout),
        windowed={
            number: window
            for number, kind in enumerate(settings.layer_types)
            if kind == SLIDING and window is not None
        },
    )


def _attention_output_norm(layout: Layout) -> str | None:
    """Return the norm after the attention of layers that normalize what they add."""
    before_sums = [norm for norm in layout.norms[1:] if norm != layout.ffn_norm]
    return next((norm for norm in before_sums if "attn" in norm or "attention" in norm), None)
