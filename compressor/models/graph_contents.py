"""Contents of an ONNX graph, as far as they are known without its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Scheme = Literal["qdq", "operators", "dynamic", "weights"]
"""Form of a quantized graph: QuantizeLinear and DequantizeLinear around float operators, operators
that compute integers (QLinearConv), activations that are rounded at run time
(DynamicQuantizeLinear, MatMulInteger), or integers as weights alone (MatMulNBits)."""
FloatType = Literal["float32", "float16", "bfloat16", "float64"]
_SCHEMES: Mapping[Scheme, str] = {
    "qdq": "QuantizeLinear and DequantizeLinear around float operators",
    "operators": "operators that compute integers",
    "dynamic": "activations rounded at run time",
    "weights": "integers as weights alone",
}
_FLOAT_TYPES: tuple[FloatType, ...] = ("float32", "float16", "bfloat16", "float64")
_FEW_BYTES = 1024
"""Float constants that no conversion is worth."""
_MOST_NAMES = 3
"""Branches that are named."""


@dataclass(frozen=True, slots=True)
class Branching:
    """A node with subgraphs, such as If or Loop."""

    node: str
    """Operator and name."""
    products: int
    """Products with a constant weight inside."""


@dataclass(frozen=True, slots=True)
class GraphContents:
    """Contents of a graph. A product multiplies a computed value by a constant float weight."""

    opset: int
    weight_bytes: Mapping[str, int]
    """Dtype to bytes of the constants, those of subgraphs too."""
    computed_bytes: Mapping[str, int]
    """Dtype to bytes of the constants, by the type in which nodes read them: behind a Cast, that of
    its result."""
    operators: Mapping[str, int]
    """Operators of ONNX itself and their number, those of subgraphs and functions too."""
    products: Mapping[str, int]
    """Operator to number of products whose weight depends on constants alone."""
    stored_products: Mapping[str, int]
    """The same of those whose weight is stored as it is multiplied: none is transposed, say."""
    other_products: Mapping[str, int]
    """Operators that multiply in another form: recurrent layers, transposed convolutions, products
    of two computed values."""
    layers: Mapping[str, int]
    """Of these, LSTM layers and transposed convolutions whose weights can be stored as integers."""
    stored_layers: Mapping[str, int]
    """The same of those whose weights are stored as they are read."""
    quantized: Mapping[Scheme, Mapping[str, int]]
    """Scheme to its operators and their number; empty for a graph in float."""
    branches: tuple[Branching, ...] = ()
    domains: Mapping[str, Mapping[str, int]] | None = None
    """Domain to operators outside ONNX and their number."""
    is_decoder: bool = False
    """True for a decoder of `export-onnx`, with a key-value cache."""
    unsupported_inputs: Mapping[str, str] = field(default_factory=dict)
    """Inputs that are no tensors of numbers, with their kind."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """(problem, remedy) of outputs with maps and of sparse tensors, which are not converted."""

    @property
    def float_type(self) -> FloatType | None:
        """The type of most bytes of the float weights; None if there are none."""
        return _most(self.weight_bytes)

    @property
    def computed_float_type(self) -> FloatType | None:
        """The type in which most bytes of the float weights are computed; None without any."""
        return _most(self.computed_bytes)

    @property
    def in_other_domains(self) -> bool:
        """True if nothing multiplies weights but operators outside ONNX, such as trees."""
        floats = sum(self.weight_bytes.get(name, 0) for name in _FLOAT_TYPES)
        multiplies = any(self.products.values()) or any(self.other_products.values())
        return bool(self.domains) and not multiplies and floats < _FEW_BYTES

    def describe_domains(self) -> str:
        """Return the operators outside ONNX, with their domains."""
        return "; ".join(
            f"{_counts(operators)} of {domain}"
            for domain, operators in (self.domains or {}).items()
        )

    def input_problems(self) -> Iterator[tuple[str, str]]:
        """Yield (problem, remedy) of each input that no samples can be made for."""
        for name, kind in self.unsupported_inputs.items():
            yield (
                f"the input {name} is no tensor of numbers ({kind})",
                "cut the graph behind the nodes that read it (`onnx.utils.extract_model`), and "
                "feed what they compute",
            )

    def rows(self) -> list[tuple[str, str]]:
        """Return (label, text) rows for `show` and `lint`."""
        rows = []
        if self.weight_bytes:
            sizes = sorted(self.weight_bytes.items(), key=lambda item: -item[1])
            text = ", ".join(f"{name} {_bytes(size)}" for name, size in sizes)
            rows.append(("constants", text))
        listed = [*self.products.items()]
        rows.append(("products with weights", _counts(dict(listed)) or "none"))
        if self.other_products:
            rows.append(("other products", _counts(self.other_products)))
        rows += [
            ("quantized", f"{_SCHEMES[scheme]} ({_counts(operators)})")
            for scheme, operators in self.quantized.items()
        ]
        if self.branches:
            rows.append(("control flow", describe_branches(self.branches)))
        rows += [
            (f"operators of {domain}", _counts(operators))
            for domain, operators in (self.domains or {}).items()
        ]
        return rows

    def describe_quantized(self) -> str:
        """Return the schemes by which the graph is quantized, with the operators."""
        return "; ".join(
            f"{_SCHEMES[scheme]}: {_counts(operators)}"
            for scheme, operators in self.quantized.items()
        )


def _most(sizes: Mapping[str, int]) -> FloatType | None:
    largest = max(_FLOAT_TYPES, key=lambda name: sizes.get(name, 0))
    return largest if sizes.get(largest, 0) else None


def describe_branches(branches: tuple[Branching, ...]) -> str:
    """Return nodes with subgraphs, and the products that stay in float in them."""
    texts = [
        f"{each.node} ({each.products} product{'s' if each.products != 1 else ''} in its branches)"
        for each in branches[:_MOST_NAMES]
    ]
    more = len(branches) - len(texts)
    return ", ".join(texts) + (f", and {more} more" if more else "")


def _counts(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {operator}" for operator, count in sorted(operators.items()))


def _bytes(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
