"""Structure of a decoder layer of a class of transformers, read from its modules."""

from __future__ import annotations

from typing import Any

from torch import nn

from compressor.graphs.decoder.architecture import Attention, FeedForward, Layer, Mixture
from compressor.graphs.decoder.class_experts import ExpertReader, experts_of
from compressor.graphs.decoder.class_modules import (
    ModuleReader,
    UnknownStructureError,
    linear_shape,
)
from compressor.graphs.decoder.class_probes import identify_activation
from compressor.graphs.decoder.structures import Structure

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
_FFNS = ("mlp", "ffn", "block_sparse_moe", "feed_forward")
_SHARED_EXPERTS = ("shared_expert", "shared_experts", "shared_mlp")
_SHARED_GATES = ("shared_expert_gate",)
_SINKS = "sinks"
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


def attention_of(layer: nn.Module) -> nn.Module:
    """Return the attention of a decoder layer."""
    return layer.get_submodule(next(name for name in _ATTENTIONS if hasattr(layer, name)))


class LayerReader:
    """Reads the layers of one class.

    Args:
        find: finds the modules.
        config: of the class.
        structure: of the class.
    """

    def __init__(self, find: ModuleReader, config: Any, structure: Structure) -> None:
        self.find, self.config, self.structure = find, config, structure
        self.experts = ExpertReader()

    def read(self, prefix: str, layer: nn.Module) -> Layer:
        """Return the structure of a layer.

        Args:
            prefix: full name of the layer.
            layer: the layer.

        Raises:
            UnknownStructureError: it has a part that is not known.
        """
        attention = next((name for name in _ATTENTIONS if hasattr(layer, name)), None)
        if attention is None:
            raise UnknownStructureError(f"layers without {' or '.join(_ATTENTIONS)}")
        pre_attention = self.find.optional_norm(prefix, layer, _PRE_ATTENTION)
        sandwich = hasattr(layer, _PRE_FFN[0])
        is_post = sandwich or hasattr(layer, _POST_FFN)
        pre_names = _PRE_FFN[:1] if is_post else _PRE_FFN[1:]
        pre_ffn = self.find.optional_norm(prefix, layer, pre_names)
        post = [
            self.find.optional_norm(prefix, layer, (name,)) if is_post else None
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
        projections = self.find.children(prefix, attention, _PROJECTIONS)
        if not projections:
            raise UnknownStructureError("attention without query, key and value projections")
        head_norms = self.find.children(prefix, attention, _HEAD_NORMS)
        norms = [self.find.norm(prefix, attention, (part,), f"{name}.") for part in head_norms]
        output = self.find.child(prefix, attention, _OUTPUTS)
        return Attention(
            tuple(f"{name}.{part}" for part in projections),
            f"{name}.{output}",
            by_group=self.structure.by_group and len(projections) == 1,
            head_norms=tuple(norms),
            normalizes_whole=bool(head_norms) and self._is_whole(attention, head_norms[0], output),
            output_norm=self.find.optional_norm(
                prefix, attention, _ATTENTION_OUTPUT_NORMS, f"{name}."
            ),
            sinks=f"{name}.{_SINKS}"
            if self.find.has_parameter(prefix, attention, _SINKS)
            else None,
        )

    def _is_whole(self, attention: nn.Module, norm: str, output: str) -> bool:
        """Return True if a norm of the queries has one weight for each value of all heads."""
        weight = getattr(getattr(attention, norm), "weight", None)
        width = linear_shape(getattr(attention, output))[1]
        return weight is not None and weight.ndim == 1 and weight.numel() == width

    def _ffn(self, prefix: str, layer: nn.Module) -> FeedForward | Mixture:
        name = next((name for name in _FFNS if hasattr(layer, name)), None)
        if name is None:
            return self._feed_forward(prefix, layer, "")
        block, inner = getattr(layer, name), f"{prefix}.{name}"
        experts = experts_of(block)
        if experts is None:
            return self._feed_forward(inner, block, f"{name}.")
        shared = self.find.optional(inner, block, _SHARED_EXPERTS)
        gate = self.find.optional(inner, block, _SHARED_GATES)
        self.find.known.add(f"{inner}.{experts}")
        router, modules = self.experts.router(block, experts, shared, gate)
        self.find.known |= {f"{inner}.{module}" for module in modules}
        network = None
        if shared is not None:
            network = self._feed_forward(
                f"{inner}.{shared}", getattr(block, shared), f"{name}.{shared}."
            )
        return Mixture(
            router.below(name),
            self.experts.experts(block, experts, f"{name}."),
            network,
            None if gate is None else f"{name}.{gate}",
        )

    def _feed_forward(self, prefix: str, ffn: nn.Module, place: str) -> FeedForward:
        inputs = self.find.children(prefix, ffn, _FFN_INPUTS)
        output = self.find.child(prefix, ffn, _FFN_OUTPUTS)
        activation = self.find.child(prefix, ffn, _ACTIVATIONS)
        if not inputs:
            raise UnknownStructureError(f"feed-forward networks of the class {type(ffn).__name__}")
        function = identify_activation(getattr(ffn, activation))
        if function is None:
            kind = type(getattr(ffn, activation)).__name__
            raise UnknownStructureError(f"the activation {kind}")
        width = linear_shape(getattr(ffn, output))[1]
        outputs = sum(linear_shape(getattr(ffn, part))[0] for part in inputs)
        if outputs not in {width, 2 * width}:
            raise UnknownStructureError(f"feed-forward networks of the class {type(ffn).__name__}")
        return FeedForward(
            tuple(f"{place}{part}" for part in inputs),
            f"{place}{output}",
            width,
            function,
            is_gated=outputs == 2 * width,
            activation_name=f"{place}{activation}",
            output_norm=self.find.optional_norm(prefix, ffn, _FFN_OUTPUT_NORMS, place),
        )
