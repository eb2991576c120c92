"""Building blocks of a decoder's graph: the interface that each target's operators implement.

Shapes: B sequences, T tokens, P cached positions, N heads and M key heads of width H, I inputs,
O outputs, V tokens of the vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from compressor.graphs.decoder.activations import Activation
from compressor.graphs.decoder.cache_bounds import CacheBound
from compressor.graphs.decoder.mixture import ClampedGate
from compressor.graphs.decoder.weights import BlockMatrix, ExpertBlocks
from compressor.graphs.values import Array

_GELU: Mapping[str, str] = {"gelu": "none", "gelu_tanh": "tanh"}
"""Activation to the attribute of ONNX's operator."""


@dataclass(frozen=True, slots=True)
class RotaryTables:
    """Rotary position embeddings as values of the graph."""

    cos: ir.Value
    sin: ir.Value
    """[positions, width / 2]; with ``by_token`` [B, T, width / 2]."""
    width: int
    """Values of a head that are rotated, from the first one."""
    by_token: bool
    """True if the rows follow the tokens and not the positions."""


@dataclass(frozen=True, slots=True)
class NormWeights:
    """A norm over the last axis as values of the graph."""

    kind: Literal["rms", "layer"]
    weight: ir.Value
    bias: ir.Value | None
    epsilon: float


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """Shape of the attention, which is the same in every layer."""

    heads: int
    key_heads: int
    width: int
    """Width H of a head."""
    scale: float
    """Factor of the attention scores."""
    rotary_in_pairs: bool
    """True if rotary embeddings rotate neighbours, False if they rotate the halves of a head."""
    cap: float = 0.0
    """Cap c of the scores, c · tanh(score / c); 0 for none."""

    @property
    def widths(self) -> list[int]:
        """Widths of queries, keys and values side by side."""
        return [self.heads * self.width, *[self.key_heads * self.width] * 2]


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Inputs of one layer's attention."""

    name: str
    """Prefix of the names of its nodes."""
    query: ir.Value
    """[B, T, N · H]; if ``key`` is None, queries, keys and values side by side."""
    key: ir.Value | None
    value: ir.Value | None
    """[B, T, M · H]."""
    past: tuple[ir.Value, ir.Value]
    """Cached keys and values, [B, M, P, H]."""
    rotary: RotaryTables | None
    window: int | None
    """Tokens that it attends to, the current one included; None for all."""
    cache_scales: Sequence[ir.Value]
    """float32 [M · H] of keys and of values; empty for a cache of floats."""
    sinks: ir.Value | None = None
    """[N]: a logit of each head that takes part in the softmax and has no value."""
    bound: CacheBound | None = None
    """Bound of the cache; None if it holds all positions."""


@dataclass(frozen=True, slots=True)
class AttentionResult:
    """Results of one layer's attention."""

    output: ir.Value
    """[B, T, N · H]."""
    keys: ir.Value
    values: ir.Value
    """[B, M, P + T, H]."""


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """All experts of a layer, packed."""

    chosen: int
    """Experts of a token."""
    bits: int
    size: int
    """Inputs of a block."""
    activation: Activation | ClampedGate
    is_gated: bool
    inputs: ExpertBlocks
    """Outputs of gate and up alternate."""
    input_bias: Array | None
    """float32 [E, O]."""
    output: ExpertBlocks
    output_bias: Array | None


@dataclass(frozen=True, slots=True)
class Branch:
    """Nodes of a branch of a conditional, and the constants that it holds itself."""

    nodes: list[ir.Node]
    constants: dict[str, ir.Value]

    def graph(self, outputs: Sequence[ir.Value], name: str) -> ir.Graph:
        """Return the graph that computes values, without inputs."""
        return ir.Graph(
            [], outputs, nodes=self.nodes, initializers=[*self.constants.values()], name=name
        )


class Operators(ABC):
    """A graph under construction; every method appends nodes and returns their result.

    Attributes:
        dtype: of the weights and of what nodes compute: float32 or float16.
        nodes: in the order of computation.
        constants: initializers by name.
    """

    opsets: ClassVar[Mapping[str, int]]
    rotary_pairs_multiple: ClassVar[int] = 1
    """Numbers of pairs that ``attention`` rotates by position are multiples of it."""
    has_packed_experts: ClassVar[bool] = False
    """True if ``packed_experts`` is implemented."""
    bounds_caches: ClassVar[bool] = False
    """True if caches may be bounded."""

    def __init__(self, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        self.dtype = dtype
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}
        self._results: dict[str, ir.Value] = {}
        self._inner: dict[str, ir.Value] | None = None
        """Initializers of the branch under construction; None outside of branches."""

    def op(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        outputs: int = 1,
        **attributes: str | float | Sequence[int] | ir.TensorProtocol | ir.Graph,
    ) -> ir.Value:
        """Append one node and return its first output; the others are ``outputs_of`` it."""
        node = ir.node(
            operator, inputs, attributes or None, domain=domain, num_outputs=outputs, name=name
        )
        for number, output in enumerate(node.outputs):
            output.name = name if number == 0 else f"{name}.{number}"
        self.nodes.append(node)
        self._results.setdefault(name, node.outputs[0])
        return node.outputs[0]

    def existing(self, name: str) -> ir.Value | None:
        """Return the result of the node of this name; None if there is no such node yet."""
        return self._results.get(name)

    def constant(self, name: str, value: Array | ir.LazyTensor) -> ir.Value:
        """Return the initializer of this name, added if it is absent."""
        if name not in self.constants:
            tensor = (
                value
                if isinstance(value, ir.LazyTensor)
                else ir.tensor(np.asarray(value, order="C"))
            )
            tensor.name = name
            self.constants[name] = ir.Value(
                name=name,
                shape=ir.Shape(value.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        return self.constants[name]

    @contextmanager
    def branch(self) -> Iterator[Branch]:
        """Append nodes to a branch of a conditional; constants stay with the whole graph."""
        nodes, results = self.nodes, self._results
        branch = Branch([], {})
        self.nodes, self._results, self._inner = branch.nodes, dict(results), branch.constants
        try:
            yield branch
        finally:
            self.nodes, self._results, self._inner = nodes, results, None

    def inner_constant(self, name: str, value: Array | ir.LazyTensor) -> ir.Value:
        """Return an initializer of the branch under construction, or of the whole graph."""
        if self._inner is None:
            return self.constant(name, value)
        outer, self.constants = self.constants, self._inner
        try:
            return self.constant(name, value)
        finally:
            self.constants = outer

    def floats(self, name: str, value: Array) -> ir.Value:
        """Return the initializer of this name in ``dtype``, added if it is absent."""
        return self.constant(name, value.astype(self.dtype.numpy()))

    def cast(self, x: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """Return x, which is of ``self.dtype``, in another type."""
        return x if dtype == self.dtype else self.op("Cast", [x], name, to=dtype)

    def cast_from_float(self, x: ir.Value, name: str) -> ir.Value:
        """Return x, which is of float32, in ``self.dtype``."""
        is_float = self.dtype == ir.DataType.FLOAT
        return x if is_float else self.op("Cast", [x], name, to=self.dtype)

    def ints(self, *values: int) -> ir.Value:
        """Return a constant of int64 [values]."""
        return self.constant(f"ints.{'_'.join(map(str, values))}", np.array(values, dtype=np.int64))

    def linear(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None, name: str) -> ir.Value:
        """Return x · W + b, with W [I, O]."""
        product = self.op("MatMul", [x, weight], name if bias is None else f"{name}.product")
        return product if bias is None else self.op("Add", [product, bias], name)

    def split(self, x: ir.Value, sizes: Sequence[int], name: str) -> list[ir.Value]:
        """Return the parts of x along the last axis."""
        first = self.op("Split", [x, self.ints(*sizes)], name, outputs=len(sizes), axis=-1)
        return outputs_of(first)

    def norm(self, x: ir.Value, norm: NormWeights, name: str) -> ir.Value:
        """Return RMSNorm or LayerNorm over the last axis."""
        if norm.kind == "rms":
            return self.rms_norm(x, norm.weight, norm.epsilon, name)
        operands = [x, norm.weight, *([] if norm.bias is None else [norm.bias])]
        return self.op("LayerNormalization", operands, name, axis=-1, epsilon=norm.epsilon)

    @abstractmethod
    def rms_norm(self, x: ir.Value, weight: ir.Value, epsilon: float, name: str) -> ir.Value:
        """Return RMSNorm over the last axis."""

    @abstractmethod
    def add_and_norm(
        self, x: ir.Value, residual: ir.Value, norm: NormWeights, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """Return the norm of x + residual, and x + residual."""

    def activation(self, x: ir.Value, function: Activation, name: str) -> ir.Value:
        """Return the activation of x; one with parameters is none of these."""
        if function == "silu":
            return self.silu(x, name)
        if function in _GELU:
            return self.op("Gelu", [x], name, approximate=_GELU[function])
        if function == "relu":
            return self.op("Relu", [x], name)
        assert function == "relu2", function  # noqa: S101
        positive = self.op("Relu", [x], f"{name}.positive")
        return self.op("Mul", [positive, positive], name)

    def capped(self, x: ir.Value, cap: float, name: str) -> ir.Value:
        """Return c · tanh(x / c)."""
        limit = self.floats(f"cap.{cap:g}", np.array(cap, np.float32))
        share = self.op("Tanh", [self.op("Div", [x, limit], f"{name}.shares")], f"{name}.tanh")
        return self.op("Mul", [share, limit], name)

    def scaled(self, x: ir.Value, factor: float, name: str) -> ir.Value:
        """Return x times a constant; x itself for 1."""
        if factor == 1.0:
            return x
        value = self.floats(f"factor.{factor!r}", np.array(factor, np.float32))
        return self.op("Mul", [x, value], name)

    @abstractmethod
    def silu(self, x: ir.Value, name: str) -> ir.Value:
        """Return x · sigmoid(x)."""

    @abstractmethod
    def packed_linear(
        self, x: ir.Value, weight: BlockMatrix, bias: ir.Value | None, name: str
    ) -> ir.Value:
        """Return x · W + b with a packed W."""

    def packed_experts(
        self, tokens: ir.Value, shares: ir.Value, experts: PackedExperts, name: str
    ) -> ir.Value:
        """Return the sum of packed experts times their shares, [N, hidden].

        Args:
            tokens: [N, hidden].
            shares: [N, E], 0 for experts that a token does not reach.
            experts: the experts.
            name: of the result.
        """
        raise NotImplementedError

    @abstractmethod
    def packed_rows(self, ids: ir.Value, table: BlockMatrix, name: str) -> ir.Value:
        """Return the rows of a packed embedding, [B, T, hidden].

        Its initializers are those of a packed linear layer of the same name.
        """

    @abstractmethod
    def read_mask(self, ids: ir.Value, mask: ir.Value) -> None:
        """Append the nodes that ``attention`` reads of `attention_mask`; called once, first."""

    @abstractmethod
    def positions(self, ids: ir.Value, mask: ir.Value) -> ir.Value:
        """Return the position of each token in its sequence, int64 [B, T]."""

    def read_dropped(self, bound: CacheBound, ids: ir.Value, mask: ir.Value) -> None:
        """Append the nodes that ``attention`` reads of the positions that caches have dropped."""
        raise NotImplementedError

    @abstractmethod
    def attention(self, inputs: AttentionInputs, heads: AttentionHeads) -> AttentionResult:
        """Return causal attention over the cache and the new tokens."""


def outputs_of(first: ir.Value) -> list[ir.Value]:
    """Return all outputs of the node that computes a value."""
    node = first.producer()
    assert node is not None  # noqa: S101 - the value comes from `Operators.op`
    return list(node.outputs)
