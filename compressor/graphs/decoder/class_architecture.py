"""Architecture of a class of transformers, read from its modules.

The class is built on the device ``meta``. A module that is not accounted for is a problem: the
class then computes something that the graph would lack, and is traced instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compressor.graphs.decoder.architecture import (
    ATTENTION_CAP,
    LOGIT_CAP,
    DecoderArchitecture,
    DecoderSizes,
    Layer,
    LearnedPositions,
    Names,
    Rotary,
    Scales,
    padded_pairs,
    rotary_tables,
)
from compressor.graphs.decoder.class_layers import LayerReader, attention_of
from compressor.graphs.decoder.class_modules import (
    LAYERS,
    ModuleReader,
    UnknownStructureError,
    decoder_root,
    linear_shape,
)
from compressor.graphs.decoder.class_probes import rotates_neighbours
from compressor.graphs.decoder.structures import Structure, structure_of
from compressor.models.families.transformers.modules import build_on_meta

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")
_POSITIONS = ("embed_positions", "wpe")
_FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")
_HEADS = ("lm_head", "embed_out")
_HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads")
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len")
QUERY_GROWTH = "llama_4_scaling_beta"


def class_architecture(tree: Mapping[str, Any], context: int | None) -> DecoderArchitecture:
    """Return the architecture of the class that config.json names.

    Args:
        tree: config.json of a class with a structure.
        context: positions that the graph attends to; None for the model's own.

    Raises:
        UnknownStructureError: the class has a part that is not known.
        ModelError: transformers rejects the config.
    """
    return _class_architecture(json.dumps(dict(tree), sort_keys=True), context)


@lru_cache(maxsize=2)
def _class_architecture(content: str, context: int | None) -> DecoderArchitecture:
    tree = json.loads(content)
    structure = structure_of(tree)
    if structure is None:
        raise UnknownStructureError(f"{tree.get('model_type')} decoders")
    return _ClassReader(build_on_meta(tree), structure).read(context)


class _ClassReader:
    """Reads one class."""

    def __init__(self, module: PreTrainedModel, structure: Structure) -> None:
        self.module, self.structure = module, structure
        self.config: Any = module.config
        self.root_name, self.root = decoder_root(module)
        self.find = ModuleReader()

    def read(self, context: int | None) -> DecoderArchitecture:
        """Return the architecture."""
        self._check_fields()
        layers = self.find.child(self.root_name, self.root, LAYERS)
        head = self.find.child("", self.module, _HEADS)
        embedding = self.find.child(self.root_name, self.root, _EMBEDDINGS)
        positions = self.find.optional(self.root_name, self.root, _POSITIONS)
        stack = getattr(self.root, layers)
        reader = LayerReader(self.find, self.config, self.structure)
        read_layers = tuple(
            reader.read(f"{self.root_name}.{layers}.{n}", part) for n, part in enumerate(stack)
        )
        first = read_layers[0]
        if any(replace(layer, ffn=first.ffn) != first for layer in read_layers):
            raise UnknownStructureError("layers of several kinds")
        sizes = self._sizes(stack[0], first, embedding, head)
        length = context or self._context()
        rotary_types, rotary = self._rotary(stack, length, sizes.head_width)
        architecture = DecoderArchitecture(
            decoder=sizes,
            names=Names(self.root_name, embedding, layers, head),
            layers=read_layers,
            final_norm=self.find.norm(self.root_name, self.root, _FINAL_NORMS),
            scales=self._scales(stack[0], getattr(self.root, embedding), sizes),
            context=length,
            rotary=rotary,
            rotary_in_pairs=rotates_neighbours(attention_of(stack[0])),
            layer_types=rotary_types,
            windows=tuple(self._windows(len(stack))),
            positions=LearnedPositions(positions, self.structure.position_offset)
            if positions
            else None,
            query_factors=self._query_factors(length),
            transposed=any(isinstance(part, Conv1D) for part in stack[0].modules()),
        )
        self.find.check_all_known(self.module)
        return architecture

    def _check_fields(self) -> None:
        set_fields = [
            name for name in self.structure.unsupported if getattr(self.config, name, None)
        ]
        set_fields += [name for name in self.structure.required if not getattr(self.config, name)]
        if set_fields:
            values = (f"`{name}: {getattr(self.config, name)}`" for name in set_fields)
            raise UnknownStructureError(", ".join(values))

    def _sizes(self, layer: nn.Module, read: Layer, embedding: str, head: str) -> DecoderSizes:
        table = getattr(self.root, embedding).weight
        heads = int(_field(self.config, _HEAD_COUNTS))
        output = layer.get_submodule(read.attention.output)
        width = linear_shape(output)[1] // heads
        outputs = sum(linear_shape(layer.get_submodule(n))[0] for n in read.attention.projections)
        head_weight = f"{head}.weight"
        return DecoderSizes(
            layers=len(getattr(self.root, self.find.child(self.root_name, self.root, LAYERS))),
            hidden=table.shape[1],
            heads=heads,
            key_heads=(outputs // width - heads) // 2,
            head_width=width,
            vocabulary=getattr(self.module, head).weight.shape[0],
            tied=head_weight in dict(self.module.all_tied_weights_keys),
        )

    def _context(self) -> int:
        return int(_field(self.config, _CONTEXTS))

    def _scales(self, layer: nn.Module, embedding: nn.Module, sizes: DecoderSizes) -> Scales:
        config, attention = self.config, attention_of(layer)
        scale = getattr(attention, "scaling", None)
        scale = sizes.head_width**-0.5 if scale is None else float(scale)
        embedded = float(getattr(embedding, "embed_scale", 1.0))
        logits = 1 / float(getattr(config, "logits_scaling", None) or 1.0)
        return Scales(
            attention=scale,
            embedding=embedded * float(getattr(config, "embedding_multiplier", None) or 1.0),
            residual=float(getattr(config, "residual_multiplier", None) or 1.0),
            logits=logits * float(getattr(config, "logit_scale", None) or 1.0),
            attention_cap=float(getattr(config, ATTENTION_CAP, None) or 0.0),
            logit_cap=float(getattr(config, LOGIT_CAP, None) or 0.0),
        )

    def _query_factors(self, context: int) -> Tensor | None:
        """Return the factors of Llama 4's attention temperature, where the class has them."""
        fields = getattr(self.config, "rope_parameters", None) or {}
        beta, original = fields.get(QUERY_GROWTH), fields.get("original_max_position_embeddings")
        if not beta or not original or context <= original:
            return None
        factors: Tensor = 1 + beta * torch.log(1 + torch.floor(torch.arange(context) / original))
        return factors

    def _windows(self, layers: int) -> Iterator[int | None]:
        window = getattr(self.config, "sliding_window", None)
        if not getattr(self.config, "use_sliding_window", True):
            window = None
        types = getattr(self.config, "layer_types", None)
        for number in range(layers):
            is_sliding = types is None or types[number] == "sliding_attention"
            yield window if is_sliding else None

    def _rotary(
        self, stack: Any, context: int, head_width: int
    ) -> tuple[tuple[str | None, ...], dict[str, Rotary]]:
        """Return the key of each layer's tables, and the tables."""
        layers = len(stack)
        if self.structure.rotary == "none":
            return (None,) * layers, {}
        flags: list[bool] = [True] * layers
        if self.structure.rotary == "by flag":
            flags = [bool(attention_of(layer).use_rope) for layer in stack]
        windows = list(self._windows(layers))
        if self.structure.rotary == "sliding" and any(windows):
            flags = [window is not None for window in windows]
        name = self.find.optional(self.root_name, self.root, ("rotary_emb",))
        if name is None:
            return self._sinusoidal(stack, context, head_width, flags)
        module = getattr(self.root, name)
        types = getattr(self.config, "layer_types", None) or ["full_attention"] * layers
        has_types = any(hasattr(module, f"{kind}_inv_freq") for kind in types)
        keys = [kind if has_types else "full_attention" for kind in types]
        in_pairs = rotates_neighbours(attention_of(stack[0]))
        tables = {
            kind: rotary_tables(module, kind, context, in_pairs, head_width)
            for kind in sorted({key for key, flag in zip(keys, flags, strict=True) if flag})
        }
        return tuple(k if flag else None for k, flag in zip(keys, flags, strict=True)), tables

    def _sinusoidal(
        self, stack: Any, context: int, head_width: int, flags: Sequence[bool]
    ) -> tuple[tuple[str | None, ...], dict[str, Rotary]]:
        """Return the tables that an attention holds itself: sines, then cosines (GPT-J)."""
        table = getattr(attention_of(stack[0]), "embed_positions", None)
        if table is None or context > len(table):
            raise UnknownStructureError("a class without rotary embeddings")
        table = torch.as_tensor(table)[:context].float()
        sin, cos = table.chunk(2, dim=1)
        rotary = padded_pairs(Rotary(cos.contiguous(), sin.contiguous()), head_width)
        return tuple("full_attention" if flag else None for flag in flags), {
            "full_attention": rotary
        }


def _field(config: Any, names: Sequence[str]) -> Any:
    value = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    if value is None:
        raise UnknownStructureError(f"a config without {' or '.join(names)}")
    return value
