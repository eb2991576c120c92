"""Configuration of the ``export-onnx`` pass.

Planning imports it, so it imports neither torch nor onnx.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from compressor.config.record import MAX_BATCH_SIZE, DataName, LeftOutOfIds, Record
from compressor.engine.contract import PassConfig

HALF = "float16"


class ParityConfig(Record):
    """Comparison of the exported model with its parent in torch, on real samples.

    The pass fails if a limit is exceeded. Usual limits are looser for a model with quantized
    weights, since two runtimes may round a value to different neighbours.
    """

    data: DataName = "test"
    """Data set whose samples are compared. A traced model is also traced with the shapes of its
    samples."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Number of samples, from the start of the set. By default 64; for a language model 4, since
    each of its samples is a window of many tokens."""
    batch_size: Annotated[int, Field(ge=2, le=MAX_BATCH_SIZE)] = 16
    """Number of samples in a batch. Every sample is compared alone and in a batch of this size. Not
    for language models, whose windows are compared whole, token by token, and two at a time."""
    max_abs: Annotated[float, Field(gt=0)] | None = None
    """Largest absolute difference of a value of any output. By default 1e-3, and no limit for a
    quantized model or a graph in float16."""
    cosine: Annotated[float, Field(ge=0, le=1)] | None = None
    """Smallest cosine similarity between an output and its parent's, over all samples. By default
    0.9999, 0.999 for a graph in float16, and 0.98 for a quantized model; no limit for a quantized
    language model."""
    agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    """Smallest fraction of samples whose class with the largest logit is the parent's. Classes that
    the parent rates within `max_abs` (or 1e-3) of each other count as equal. By default 1, and 0.9
    for a quantized model or a graph in float16; no limit for a quantized language model. Only for
    models that have logits."""
    kl: Annotated[float, Field(gt=0)] | None = None
    """Largest mean KL divergence of the next-token distribution from the parent's, in nats. By
    default 0.02. Only for language models."""


class KvCacheCalibration(Record):
    """Calibration of the scales of a key-value cache in 8 bits."""

    data: DataName
    """Data set of token windows on which the largest keys and values are measured."""
    num_samples: Annotated[int, Field(ge=1)] = 16
    """Number of windows. The set is divided into that many equal stretches, and the first window of
    each is taken."""


class DecoderConfig(Record):
    """Graph of a language model.

    It is built operator by operator where the architecture is covered. For every other class it is
    traced from torch, and only `context_length` applies.
    """

    target: Literal["onnxruntime", "portable"] = "onnxruntime"
    """Operators of the graph. `onnxruntime`: ONNX Runtime's own, which are fastest there
    (attention, products with packed weights). `portable`: those of the ONNX standard (opset 21),
    with packed weights as blocks that DequantizeLinear reads."""
    context_length: Annotated[int, Field(ge=1)] | None = None
    """Number of positions that the graph attends to; it stores rotary tables of that length. By
    default, and at most, as many as the model has positions."""
    int8_embeddings: Annotated[
        bool, Field(validation_alias=AliasChoices("int8_embeddings", "int8_tables"))
    ] = False
    """Store the embedding and the language-model head in 8 bits, with one scale for each block of
    up to 256 values. A head that is tied to the embedding is stored once; a packed head stays as it
    is."""
    int8_kv_cache: KvCacheCalibration | None = None
    """Store the key-value cache in 8 bits, symmetric, with one scale for each value of a head. It
    takes a quarter of the memory, and long contexts decode slightly faster, but prefill runs at
    half the speed. Not for `target: portable`. Set it to the calibration data, as
    `{data: <set>}`; by default the cache has the `dtype` of the graph."""
    accuracy_level: Literal[0, 1, 2, 3, 4] | None = None
    """`accuracy_level` of MatMulNBits, ONNX Runtime's product with packed weights: 4 rounds
    activations to 8 bits by block, 1 computes in float32. By default 4, or 1 if the comparison
    fails with 4. Not for `target: portable`, and only where weights are packed or
    `int8_embeddings` is set."""

    stacked_heads: bool = True
    """Compute the attention of a single token with all query heads of a key head as rows of one
    product, where at least four query heads share one. Keys and values are then read once instead
    of once for each query head; the result is the same but for float rounding. Set it to false
    where more threads than key heads run one sequence and measuring shows that it loses: each key
    head is one task then.
    Prompts, batches, caches in 8 bits, graphs in float16 and layers with a window keep
    GroupQueryAttention as it is."""

    adapter_slots: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None, LeftOutOfIds()
    ] = None
    """Linear layers of the decoder that can take a LoRA adapter while it runs: the ends of their
    names, such as `[q_proj, v_proj]`, or `[all-linear]`. Without an adapter the graph computes the
    same, bit for bit. `generate --adapter` loads adapters that were trained on the parent."""

    @model_validator(mode="after")
    def _check_portable(self) -> DecoderConfig:
        if self.target != "portable":
            return self
        problems = []
        if self.int8_kv_cache is not None:
            problems.append("`int8_kv_cache` requires ONNX Runtime's own attention operator")
        if self.accuracy_level is not None:
            problems.append("`accuracy_level` sets ONNX Runtime's own MatMulNBits operator")
        if problems:
            raise ValueError(
                f"{'; '.join(problems)}; remove what `target: portable` lacks, "
                "or set `target: onnxruntime`"
            )
        return self


class ExportOnnxConfig(PassConfig):
    """Fields of an ``export-onnx`` step."""

    opset: Annotated[int, Field(ge=18, le=24)] = 20
    """ONNX operator set version. Runtimes of the last two years read 20. From 21 on, packed weights
    of 4 and 8 bits are stored as blocks of integers that DequantizeLinear reads; before, as floats.
    Not for language models, whose graph states its own version."""
    dynamic: tuple[str, ...] | None = None
    """Names of the input dimensions that stay variable, such as `[batch]`. The others are fixed to
    the sizes of the samples, which gives a smaller and faster graph and takes a third less time to
    trace. By default all dimensions vary. Not for language models."""
    simplify: bool = True
    """Fold constants and remove redundant nodes with onnxsim; a graph that it makes larger is kept
    as it was. For a language model it applies to the vision tower alone."""
    external_data_threshold_mb: Annotated[int, Field(ge=0, le=2000)] = 2000
    """Size of the weights in megabytes beyond which they are stored in `model.onnx.data` beside the
    graph. A single file holds at most 2 GB."""
    dtype: Annotated[Literal["float32", "float16"], LeftOutOfIds()] = "float32"
    """Type of the graph's weights and of what it computes, whatever type the checkpoint is stored
    in. The graph is compared with torch in float32, with the same weights. `float32` holds every
    bfloat16 and float16 weight exactly and is faster on CPUs, but twice as large as such a
    checkpoint. `float16` is as large as the checkpoint, and GPUs compute with it directly; values
    beyond 65504, which bfloat16 can have, become infinite in it, and the comparison fails. Inputs
    and outputs stay float32, except for the keys and values of a language model; a vision tower
    stays float32 as a whole."""
    decoder: DecoderConfig = DecoderConfig()
    """Graph of a language model. Not for other models."""
    parity: ParityConfig = ParityConfig()
    """Comparison with the parent in torch that ends the pass."""
