"""Sessions of ONNX graphs in ONNX Runtime; torch is never imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnxruntime

from compressor.data.contract import Batch
from compressor.errors import ModelError, PassError
from compressor.graphs.decoder.cache_layout import KvCacheLayout
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    CROSS_PREFIX,
    DECODER_TOKENS,
    ENCODER_MASK,
    IMAGE_EMBEDS,
    INPUT_IDS,
    PAST_PREFIX,
    POSITION_OFFSETS,
    PRESENT_PREFIX,
)
from compressor.graphs.files import MODEL, read_graph
from compressor.graphs.signature import dimension, input_specs
from compressor.models.capabilities.signature import REST, InputSpec, OutputSpec
from compressor.runtimes.onnxruntime.decoder.encoder import Encoder, input_names
from compressor.runtimes.onnxruntime.decoder.opening import takes_one_token
from compressor.runtimes.onnxruntime.decoder.vision import (
    VisionTower,
    image_shapes,
    no_images,
)
from compressor.runtimes.onnxruntime.inference import ERRORS, open_inference_session, run_limited
from compressor.runtimes.onnxruntime.integer_kernels import (
    EMULATED_PRODUCTS,
    EXACT_PRODUCTS,
    integer_products_saturate,
)
from compressor.runtimes.onnxruntime.remedies import first_line, remedy_of
from compressor.runtimes.session import Session

_DTYPES = {"float": "float32", "double": "float64"}
EXACT_RUNTIME = "x64quantprecision=1"
"""Part of a session's ``runtime`` whose integer products do not saturate by a setting."""
_ROUNDING = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
)
"""Operators that round floats to integers."""
_NUMPY_DTYPES = frozenset(
    {"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
    | {"float16", "float32", "float64"}
)


class OnnxSession(Session):
    """``model.onnx`` with all graph optimizations of ONNX Runtime.

    A decoder is run on whole windows of tokens: its key-value cache is empty, and neither the cache
    nor the attention mask is among ``inputs``. Behind an encoder, its tokens are the input
    ``decoder_input_ids``.
    """

    def __init__(
        self,
        folder: Path,
        threads: int,
        device: str,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Open the graph, and the vision tower beside it if there is one.

        Args:
            folder: the model's folder.
            threads: threads of one operator; operators run one at a time.
            device: ``cpu`` or ``cuda``.
            settings: session config entries of the graph, key to value.

        Raises:
            ModelError: a graph cannot be opened.
            UsageError: the installed ONNX Runtime does not support the device.
        """
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self._file = folder / MODEL
        self._saturating: Callable[[], onnxruntime.InferenceSession] | None = None
        self._session = self._open(folder, threads, device, settings)
        self._caches = KvCacheLayout.from_inputs(self._session.get_inputs())
        is_decoder = self._caches is not None
        self._one_token = is_decoder and takes_one_token(self._session)
        self.inputs = self._input_specs(folder)
        self._encoder = Encoder.open_if_present(folder, threads, device) if is_decoder else None
        if self._encoder is not None:
            [tokens] = self.inputs
            batch = tokens.shape[0]
            # Not as many as the encoder's, whose axis has the same name.
            tokens = replace(tokens, name=DECODER_TOKENS, shape=(batch, DECODER_TOKENS))
            self.inputs = (*self._encoder.inputs, tokens)
        self._tower = VisionTower.open_if_present(folder, threads, device) if is_decoder else None
        if self._tower is not None:
            self.inputs += self._tower.inputs
        self.output_names = tuple(
            value.name
            for value in self._session.get_outputs()
            if not is_decoder or not value.name.startswith(PRESENT_PREFIX)
        )
        if not is_decoder:
            self.outputs = tuple(
                OutputSpec(
                    value.name,
                    "",
                    tuple(
                        dimension(value.name, axis, size) for axis, size in enumerate(value.shape)
                    )
                    or None,
                )
                for value in self._session.get_outputs()
            )

    def _open(
        self, folder: Path, threads: int, device: str, settings: Mapping[str, str]
    ) -> onnxruntime.InferenceSession:
        """Open the graph, with exact integer products where this processor saturates them.

        ``settings`` that state a precision of products are taken as they are.
        """
        default = partial(open_inference_session, folder, threads, device, settings=settings)
        chosen = settings.keys() & {*EXACT_PRODUCTS, *EMULATED_PRODUCTS}
        if chosen or not (is_quantized(folder) and integer_products_saturate()):
            return default()
        self._saturating = default
        exact = {**settings, **EXACT_PRODUCTS}
        try:
            session = open_inference_session(folder, threads, device, settings=exact)
        except ModelError:
            return self._open_saturating()
        self.runtime += f", {EXACT_RUNTIME}"
        return session

    def _open_saturating(self) -> onnxruntime.InferenceSession:
        """Open the graph with products that saturate: some cannot be opened or run with exact ones.

        Those are graphs of other programs in which weights share a zero-point, and weights that no
        integer kernel reads.
        """
        assert self._saturating is not None  # noqa: S101 - called where exact products failed
        session, self._saturating = self._saturating(), None
        version = f"onnxruntime {onnxruntime.__version__}"
        self.runtime = f"{version}, saturating integer products"
        return session

    def _input_specs(self, folder: Path) -> tuple[InputSpec, ...]:
        """Return the inputs of the graph that samples have: of a decoder, its tokens alone."""
        unshaped = _inputs_without_shape(self._session, folder)
        is_decoder = self._caches is not None
        return tuple(
            InputSpec(
                value.name,
                _numpy_dtype(value.type),
                (REST,)
                if value.name in unshaped
                else tuple(
                    "tokens" if self._one_token and axis == 1 else dimension(value.name, axis, size)
                    for axis, size in enumerate(value.shape)
                ),
            )
            for value in self._session.get_inputs()
            if not is_decoder
            or (
                value.name not in {ATTENTION_MASK, ENCODER_MASK, IMAGE_EMBEDS, POSITION_OFFSETS}
                and not value.name.startswith((PAST_PREFIX, CROSS_PREFIX))
            )
        )

    def compute(self, feeds: Batch) -> Batch:
        """See ``Session.compute``.

        Raises:
            PassError: ONNX Runtime failed inside the graph.
            CallTimeoutError: a call did not end in time.
        """
        complete = self.complete_feeds(feeds)
        try:
            if self._one_token and complete[INPUT_IDS].shape[1] > 1:
                return self._compute_one_by_one(complete)
            values = run_limited(self._session, self.output_names, complete, self._file)
        except ERRORS as error:
            if self._saturating is not None:
                self._session = self._open_saturating()
                return self.compute(feeds)
            raise PassError(
                f"ONNX Runtime failed: {first_line(error)}", remedy=remedy_of(error)
            ) from error
        return dict(zip(self.output_names, values, strict=True))

    def _compute_one_by_one(self, feeds: Batch) -> Batch:
        """Return the outputs of a window for a graph that takes one token per call."""
        assert self._caches is not None  # noqa: S101 - only a decoder takes tokens one by one
        cache_names = self._caches.names
        names = [*self.output_names, *map(KvCacheLayout.present_name, cache_names)]
        ids_BT, results, state = feeds[INPUT_IDS], [], dict(feeds)
        for position in range(ids_BT.shape[1]):
            state[INPUT_IDS] = ids_BT[:, [position]]
            state[ATTENTION_MASK] = feeds[ATTENTION_MASK][:, : position + 1]
            values = run_limited(self._session, names, state, self._file)
            results.append(values[: len(self.output_names)])
            state |= dict(zip(cache_names, values[len(self.output_names) :], strict=True))
        joined = (np.concatenate(parts, axis=1) for parts in zip(*results, strict=True))
        return dict(zip(self.output_names, joined, strict=True))

    def complete_feeds(self, feeds: Batch) -> Batch:
        """Return all inputs of the graph: a decoder also has a mask, a cache and image inputs."""
        if self._caches is None:
            return feeds
        ids = feeds[INPUT_IDS if self._encoder is None else DECODER_TOKENS]
        complete = {
            INPUT_IDS: ids,
            ATTENTION_MASK: np.ones_like(ids),
            **self._caches.zeros(len(ids), 0),
        }
        if self._encoder is not None:
            complete |= self._encoder.encode(feeds, input_names(self._session))
        images = None if self._tower is None else self._tower.encode_batch(feeds)
        if images is not None:
            given = {
                IMAGE_EMBEDS: images.embeddings_NW,
                POSITION_OFFSETS: images.position_offsets_3BT,
            }
            complete |= {name: given[name] for name in image_shapes(self._session)}
        else:  # inputs that a traced graph requires
            complete |= {
                value.name: no_images(value.name, value.shape, ids)
                for value in self._session.get_inputs()
                if value.name in {IMAGE_EMBEDS, POSITION_OFFSETS}
            }
        return complete

    def close(self) -> None:
        """Free the session's memory."""
        del self._session


def is_quantized(folder: Path) -> bool:
    """Return True if a graph rounds values, with ranges of samples or of each run."""
    return any(node.op_type in _ROUNDING for node in read_graph(folder).graph.node)


def _inputs_without_shape(session: onnxruntime.InferenceSession, folder: Path) -> set[str]:
    """Return the inputs whose number of dimensions is not declared.

    ONNX Runtime shows them as scalars.
    """
    if all(value.shape for value in session.get_inputs()):
        return set()
    return {spec.name for spec in input_specs(read_graph(folder)) if spec.shape == (REST,)}


def _numpy_dtype(tensor_type: str) -> str:
    """Return the NumPy name of an ONNX Runtime type: ``float32`` for ``tensor(float)``.

    Raises:
        ModelError: NumPy has no arrays of that type, or it is no tensor.
    """
    element_type = tensor_type.removeprefix("tensor(").removesuffix(")")
    name = _DTYPES.get(element_type, element_type)
    if tensor_type == element_type or name not in _NUMPY_DTYPES:
        raise ModelError(
            f"inputs of type {tensor_type} are not supported: only tensors of numbers are",
            remedy="cut the graph behind the nodes that read this input "
            "(`onnx.utils.extract_model`), and feed what they compute",
        )
    return name
