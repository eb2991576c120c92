"""Architecture of a class of transformers, read from its modules.

The class is built on the device ``meta``. A module or parameter that is not accounted for is a
problem: the class then computes something that the graph would lack, and is traced instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compressor.graphs.decoder.architecture import (
    ATTENTION_CAP,
    LOGIT_CAP,
    Attention,
    DecoderArchitecture,
    DecoderSizes,
    FeedForward,
    Layer,
    LearnedPositions,
    Names,
    Norm,
    Rotary,
    Scales,
    padded_pairs,
    rotary_tables,
)
from compressor.graphs.decoder.class_probes import (
    identify_activation,
    identify_norm,
    rotates_neighbours,
)
from compressor.graphs.decoder.structures import Structure, structure_of
from compressor.models.families.transformers.modules import build_on_meta

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")
_POSITIONS = ("embed_positions", "wpe")
_EMBEDDING_NORMS = ("word_embeddings_layernorm",)
_LAYERS = ("layers", "h", "blocks")
_FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")
_HEADS = ("lm_head", "embed_out")
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
_PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj"),
    ("qkv_proj",),
    ("query_key_value",),
    ("c_attn",),
    ("Wqkv",),
)
_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")
_HEAD_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"))
_ATTENTION_OUTPUT_NORMS = ("attn_sub_norm",)
_FFNS = ("mlp", "ffn")
_FFN_INPUTS = (
    ("gate_proj", "up_proj"),
    ("gate_up_proj",),
    ("up_proj",),
    ("fc1",),
    ("c_fc",),
    ("dense_h_to_4h",),
    ("fc_in",),
)
_FFN_OUTPUTS = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "fc_out")
_ACTIVATIONS = ("act_fn", "activation_fn", "act")
_FFN_OUTPUT_NORMS = ("ffn_sub_norm",)
_PRE_ATTENTION = (
    "input_layernorm",
    "ln_1",
    "attention_layernorm",
    "self_attn_layer_norm",
    "norm_1",
    "ln_attn",
)
_PRE_FFN = (
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "ln_2",
    "feedforward_layernorm",
    "norm_2",
    "final_layer_norm",
    "ln_mlp",
)
_POST_FFN = "post_feedforward_layernorm"
_IGNORED = (nn.Dropout, nn.Identity)
_HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads")
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len")


QUERY_GROWTH = "llama_4_scaling_beta"
"""Field of ``rope_parameters``: queries grow with the logarithm of their position."""


class UnknownStructureError(Exception):
    """The class has a part that the graph does not have; the message names it."""


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


@lru_cache(maxsize=8)
def _class_architecture(content: str, context: int | None) -> DecoderArchitecture:
    tree = json.loads(content)
    structure = structure_of(tree)
    if structure is None:
        raise UnknownStructureError(f"{tree.get('model_type')} decoders")
    return _ClassReader(build_on_meta(tree), structure).read(context)


class _ClassReader:
    """Reads one class; modules that have been read are remembered, so that none is forgotten."""

    def __init__(self, module: PreTrainedModel, structure: Structure) -> None:
        self.module, self.structure = module, structure
        self.config: Any = module.config
        self.root_name, self.root = _decoder_root(module)
        self.known: set[str] = set()
        """Full names of modules that have been read."""

    def read(self, context: int | None) -> DecoderArchitecture:
        """Return the architecture."""
        self._check_fields()
        layers = self._child(self.root_name, self.root, _LAYERS)
        head = self._child("", self.module, _HEADS)
        embedding = self._child(self.root_name, self.root, _EMBEDDINGS)
        positions = self._optional(self.root_name, self.root, _POSITIONS)
        embedding_norm = self._optional(self.root_name, self.root, _EMBEDDING_NORMS)
        stack = getattr(self.root, layers)
        layer = [
            self._layer(f"{self.root_name}.{layers}.{n}", part) for n, part in enumerate(stack)
        ]
        if any(each != layer[0] for each in layer):
            raise UnknownStructureError("layers of several kinds")
        sizes = self._sizes(stack[0], layer[0], embedding, head)
        length = context or self._context()
        rotary_types, rotary = self._rotary(stack, length, sizes.head_width)
        architecture = DecoderArchitecture(
            decoder=sizes,
            names=Names(self.root_name, embedding, layers, head),
            layer=layer[0],
            final_norm=self._norm(self.root_name, self.root, _FINAL_NORMS),
            scales=self._scales(stack[0], getattr(self.root, embedding), sizes),
            context=length,
            rotary=rotary,
            rotary_in_pairs=rotates_neighbours(self._attention_of(stack[0])),
            layer_types=rotary_types,
            windows=tuple(self._windows(len(stack))),
            positions=LearnedPositions(positions, self.structure.position_offset)
            if positions
            else None,
            embedding_norm=None
            if embedding_norm is None
            else self._norm(self.root_name, self.root, (embedding_norm,)),
            query_factors=self._query_factors(length),
            transposed=any(isinstance(part, Conv1D) for part in stack[0].modules()),
        )
        self._check_all_known()
        return architecture

    def _check_fields(self) -> None:
        set_fields = [
            name for name in self.structure.unsupported if getattr(self.config, name, None)
        ]
        set_fields += [name for name in self.structure.required if not getattr(self.config, name)]
        if set_fields:
            values = (f"`{name}: {getattr(self.config, name)}`" for name in set_fields)
            raise UnknownStructureError(", ".join(values))

    def _check_all_known(self) -> None:
        """Check that every module without submodules has been read, or computes nothing.

        Raises:
            UnknownStructureError: some have not.
        """
        unknown = [
            name
            for name, part in self.module.named_modules()
            if name
            and not list(part.children())
            and not isinstance(part, _IGNORED)
            and name not in self.known
            and not any(name.startswith(f"{known}.") for known in self.known)
        ]
        if unknown:
            raise UnknownStructureError(f"the modules {', '.join(sorted(unknown)[:4])}")

    def _optional(self, prefix: str, module: nn.Module, names: Sequence[str]) -> str | None:
        """Return the first name that the module has, and remember it."""
        name = next((n for n in names if isinstance(getattr(module, n, None), nn.Module)), None)
        if name is not None:
            part = getattr(module, name)
            if not isinstance(part, nn.ModuleList):
                self.known.add(f"{prefix}.{name}" if prefix else name)
        return name

    def _child(self, prefix: str, module: nn.Module, names: Sequence[str]) -> str:
        name = self._optional(prefix, module, names)
        if name is None:
            raise UnknownStructureError(f"{prefix or 'a model'} without {' or '.join(names)}")
        return name

    def _children(
        self, prefix: str, module: nn.Module, groups: Sequence[tuple[str, ...]]
    ) -> tuple[str, ...]:
        """Return the first group of names that the module has all of; none if there is none."""
        for names in groups:
            if all(isinstance(getattr(module, name, None), nn.Module) for name in names):
                self.known |= {f"{prefix}.{name}" for name in names}
                return names
        return ()

    def _norm(self, prefix: str, module: nn.Module, names: Sequence[str], place: str = "") -> Norm:
        """Return the norm of one of these names."""
        name = self._child(prefix, module, names)
        kind, epsilon, offset = self._identified(getattr(module, name))
        return Norm(f"{place}{name}", epsilon, kind, offset)

    @staticmethod
    def _identified(norm: nn.Module) -> Any:
        identified = identify_norm(norm)
        if identified is None:
            raise UnknownStructureError(f"norms of the class {type(norm).__name__}")
        return identified

    def _optional_norm(
        self, prefix: str, module: nn.Module, names: Sequence[str], place: str = ""
    ) -> Norm | None:
        if self._optional(prefix, module, names) is None:
            return None
        return self._norm(prefix, module, names, place)

    def _attention_of(self, layer: nn.Module) -> nn.Module:
        name = next(name for name in _ATTENTIONS if hasattr(layer, name))
        return layer.get_submodule(name)

    def _layer(self, prefix: str, layer: nn.Module) -> Layer:
        attention = next((name for name in _ATTENTIONS if hasattr(layer, name)), None)
        if attention is None:
            raise UnknownStructureError(f"layers without {' or '.join(_ATTENTIONS)}")
        pre_attention = self._optional_norm(prefix, layer, _PRE_ATTENTION)
        sandwich = hasattr(layer, _PRE_FFN[0])
        is_post = sandwich or hasattr(layer, _POST_FFN)
        pre_names = _PRE_FFN[:1] if is_post else _PRE_FFN[1:]
        pre_ffn = self._optional_norm(prefix, layer, pre_names)
        post = [
            self._optional_norm(prefix, layer, (name,)) if is_post else None
            for name in ("post_attention_layernorm", _POST_FFN)
        ]
        flags = any(getattr(self.config, name, False) for name in self.structure.parallel_flags)
        return Layer(
            self._attention(f"{prefix}.{attention}", getattr(layer, attention), attention),
            self._ffn(prefix, layer),
            pre_attention,
            pre_ffn,
            post[0],
            post[1],
            is_parallel=flags or (pre_ffn is None and not any(post)),
        )

    def _attention(self, prefix: str, attention: nn.Module, name: str) -> Attention:
        projections = self._children(prefix, attention, _PROJECTIONS)
        if not projections:
            raise UnknownStructureError("attention without query, key and value projections")
        head_norms = self._children(prefix, attention, _HEAD_NORMS)
        norms = [self._norm(prefix, attention, (part,), f"{name}.") for part in head_norms]
        output = self._child(prefix, attention, _OUTPUTS)
        return Attention(
            tuple(f"{name}.{part}" for part in projections),
            f"{name}.{output}",
            by_group=self.structure.by_group and len(projections) == 1,
            head_norms=tuple(norms),
            normalizes_whole=bool(head_norms) and self._is_whole(attention, head_norms[0], output),
            output_norm=self._optional_norm(prefix, attention, _ATTENTION_OUTPUT_NORMS, f"{name}."),
        )

    def _is_whole(self, attention: nn.Module, norm: str, output: str) -> bool:
        """Return True if a norm of the queries has one weight for each value of all heads."""
        weight = getattr(getattr(attention, norm), "weight", None)
        width = _shape(getattr(attention, output))[1]
        return weight is not None and weight.ndim == 1 and weight.numel() == width

    def _ffn(self, prefix: str, layer: nn.Module) -> FeedForward:
        name = next((name for name in _FFNS if hasattr(layer, name)), None)
        ffn: nn.Module = layer if name is None else getattr(layer, name)
        place = "" if name is None else f"{name}."
        prefix = prefix if name is None else f"{prefix}.{name}"
        inputs = self._children(prefix, ffn, _FFN_INPUTS)
        output = self._child(prefix, ffn, _FFN_OUTPUTS)
        activation = self._child(prefix, ffn, _ACTIVATIONS)
        if not inputs:
            raise UnknownStructureError(f"feed-forward networks of the class {type(ffn).__name__}")
        function = identify_activation(getattr(ffn, activation))
        if function is None:
            kind = type(getattr(ffn, activation)).__name__
            raise UnknownStructureError(f"the activation {kind}")
        width = _shape(getattr(ffn, output))[1]
        outputs = sum(_shape(getattr(ffn, part))[0] for part in inputs)
        if outputs not in {width, 2 * width}:
            raise UnknownStructureError(f"feed-forward networks of the class {type(ffn).__name__}")
        return FeedForward(
            tuple(f"{place}{part}" for part in inputs),
            f"{place}{output}",
            width,
            function,
            is_gated=outputs == 2 * width,
            activation_name=f"{place}{activation}",
            output_norm=self._optional_norm(prefix, ffn, _FFN_OUTPUT_NORMS, place),
        )

    def _sizes(self, layer: nn.Module, read: Layer, embedding: str, head: str) -> DecoderSizes:
        table = getattr(self.root, embedding).weight
        heads = int(_field(self.config, _HEAD_COUNTS))
        output = layer.get_submodule(read.attention.output)
        width = _shape(output)[1] // heads
        outputs = sum(_shape(layer.get_submodule(n))[0] for n in read.attention.projections)
        head_weight = f"{head}.weight"
        return DecoderSizes(
            layers=len(getattr(self.root, self._child(self.root_name, self.root, _LAYERS))),
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
        config, attention = self.config, self._attention_of(layer)
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
        return 1 + beta * torch.log(1 + torch.floor(torch.arange(context) / original))

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
            flags = [bool(self._attention_of(layer).use_rope) for layer in stack]
        windows = list(self._windows(layers))
        if self.structure.rotary == "sliding" and any(windows):
            flags = [window is not None for window in windows]
        name = self._optional(self.root_name, self.root, ("rotary_emb",))
        if name is None:
            return self._sinusoidal(stack, context, head_width, flags)
        module = getattr(self.root, name)
        types = getattr(self.config, "layer_types", None) or ["full_attention"] * layers
        has_types = any(hasattr(module, f"{kind}_inv_freq") for kind in types)
        keys = [kind if has_types else "full_attention" for kind in types]
        in_pairs = rotates_neighbours(self._attention_of(stack[0]))
        tables = {
            kind: rotary_tables(module, kind, context, in_pairs, head_width)
            for kind in sorted({key for key, flag in zip(keys, flags, strict=True) if flag})
        }
        return tuple(k if flag else None for k, flag in zip(keys, flags, strict=True)), tables

    def _sinusoidal(
        self, stack: Any, context: int, head_width: int, flags: Sequence[bool]
    ) -> tuple[tuple[str | None, ...], dict[str, Rotary]]:
        """Return the tables that an attention holds itself: sines, then cosines (GPT-J)."""
        table = getattr(self._attention_of(stack[0]), "embed_positions", None)
        if table is None or context > len(table):
            raise UnknownStructureError("a class without rotary embeddings")
        table = torch.as_tensor(table)[:context].float()
        sin, cos = table.chunk(2, dim=1)
        rotary = padded_pairs(Rotary(cos.contiguous(), sin.contiguous()), head_width)
        return tuple("full_attention" if flag else None for flag in flags), {
            "full_attention": rotary
        }


def _decoder_root(module: PreTrainedModel) -> tuple[str, nn.Module]:
    """Return the module that holds the embedding and the layers, with its name."""
    name = module.base_model_prefix
    root = getattr(module, name, None)
    if root is None:
        raise UnknownStructureError("a class without a base model")
    if not any(hasattr(root, part) for part in _LAYERS) and hasattr(root, "decoder"):
        return f"{name}.decoder", root.decoder
    return name, root


def _shape(linear: nn.Module) -> tuple[int, int]:
    """Return (outputs, inputs) of a linear layer."""
    weight: Any = linear.weight
    if isinstance(linear, Conv1D):
        return int(weight.shape[1]), int(weight.shape[0])
    return int(weight.shape[0]), int(weight.shape[1])


def _field(config: Any, names: Sequence[str]) -> Any:
    value = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    if value is None:
        raise UnknownStructureError(f"a config without {' or '.join(names)}")
    return value
