"""The ``export-onnx`` pass: its config and what the engine calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.artifacts.store import Artifact
from compressor.config.record import DataName, Record
from compressor.engine.contract import (
    Estimate,
    Pass,
    PassConfig,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.errors import RequirementError
from compressor.models.facts import ModelFacts

_BASE_MEMORY_BYTES = 900_000_000  # torch, the exporter, ONNX Runtime
_COPIES = 3  # beside torch's: the graph's weights, the serialized file, the runtime's
_BASE_SECONDS = 20.0
_GRAPH_BYTES = 100_000
_LANGUAGE_MODELS = "transformers"
"""The family whose decoders are built."""


class ParityConfig(Record):
    """How the exported model is held against its parent, on real samples."""

    data: DataName = "test"
    """The set whose samples are compared; the export is traced on its shapes too."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Samples from the start of the set; by default 64, and 4 windows for a language model."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Compared one sample at a time, and so many at a time."""
    max_abs: Annotated[float, Field(gt=0)] | None = None
    """The largest |Δ| that any value of any output may have; by default 1e-3, and any for a model with integers, where two
    runtimes may round a value to neighbours."""
    cosine: Annotated[float, Field(ge=0, le=1)] | None = None
    """The smallest cosine that any sample's output may have with its parent's; by default 0.9999, and 0.98 with integers."""
    agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    """The part of the samples whose answer must be the same, ties within `max_abs` or 1e-3 counted as the same; by default all,
    and 90 % with integers."""
    kl: Annotated[float, Field(gt=0)] | None = None
    """Of a language model, the largest mean divergence of its next word from its parent's, in nats; by default 0.02, which with
    integers stands for the limits above where they are not set."""


class KvCacheCalibration(Record):
    """Where the scales of keys and values come from."""

    data: DataName
    """The set whose windows are read."""
    num_samples: Annotated[int, Field(ge=1)] = 16
    """How many, one from each of so many equal stretches of the set."""


class DecoderConfig(Record):
    """Of a language model, whose graph is built and not traced; `opset`, `dynamic` and `simplify` are not looked at then."""

    target: Literal["onnxruntime", "portable"] = "onnxruntime"
    """Whose operators: ONNX Runtime's own, which are faster there (attention, products of packed weights); or those of ONNX
    itself (opset 21), with weights of few bits as blocks that DequantizeLinear reads."""
    context_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens that it can attend to; by default as many as the model has positions. Their rotary tables are in the file."""
    int8_tables: bool = False
    """Embedding and head in 8 bits, in blocks of one scale; stored once where they are tied."""
    int8_kv_cache: KvCacheCalibration | None = None
    """Keys and values of what was said in 8 bits, symmetric, a scale for each value of a head: they take a quarter of the memory,
    and a long conversation goes on a little faster, but prompts are read at half the speed; by default in float32. Of ONNX
    Runtime's own operators alone. `{data: <set>}`."""
    accuracy_level: Literal[0, 1, 2, 3, 4] | None = None
    """Of MatMulNBits: 4 rounds activations to 8 bits by block, 1 computes in float32. By default 4, unless the comparison with
    torch fails with it."""

    @model_validator(mode="after")
    def _known(self) -> DecoderConfig:
        if self.int8_kv_cache is not None and self.target == "portable":
            raise ValueError(
                "`int8_kv_cache` wants ONNX Runtime's own attention: leave it out, or set `target: onnxruntime`"
            )
        return self


class ExportOnnxConfig(PassConfig):
    """The fields of an ``export-onnx`` step."""

    opset: Annotated[int, Field(ge=18, le=24)] = 20
    """The version of ONNX's operators; 20 is read by every runtime of the last two years. From 21 on, packed weights of 4 and 8
    bits are stored as integers, in blocks that DequantizeLinear reads; before, as floats."""
    dynamic: tuple[str, ...] | None = None
    """Dimensions that stay variable, by the family's names, as `[batch]`; all of them by default. The others keep the size
    they have in the samples: a smaller, faster graph, and tracing takes a third less time."""
    simplify: bool = True
    """Fold constants and drop what is redundant, through onnxsim; what it makes larger is left as it was."""
    external_data_threshold_mb: Annotated[int, Field(ge=0, le=2000)] = 2000
    """Weights beyond so many megabytes go into `model.onnx.data`; one file cannot hold more than 2 GB."""
    decoder: DecoderConfig = DecoderConfig()
    """How the graph of a language model is built."""
    parity: ParityConfig = ParityConfig()
    """The comparison with torch that the pass ends with; it fails where they differ."""


class ExportOnnx(Pass[ExportOnnxConfig]):
    """Writes ``model.onnx`` through ``torch.onnx.export(dynamo=True)`` and holds it against torch in ONNX Runtime.

    Every dimension that the family names (the batch, and sequences where there are any) may stay variable. Equal weights give
    equal bytes: what an exporter notes of its own run (stack traces, paths, node histories) is stripped. The layers of a `qat`
    step come with QuantizeLinear, DequantizeLinear and INT8 weights; it is told how many ONNX Runtime computes with integers.

    The decoder of a transformers checkpoint is built instead, in ONNX Runtime's own operators: one graph for prompt and step,
    keys and values in and out, the integers of an `awq` step as they are. `genai_config.json` and a tokenizer lie beside it.
    """

    name = "export-onnx"
    version = 9
    accepts = frozenset({"torch", "quantized", "packed"})
    produces = "onnx"
    Config = ExportOnnxConfig
    tools: ClassVar[tuple[str, ...]] = (
        "torch",
        "onnx",
        "onnx-ir",
        "onnxscript",
        "onnxsim",
        "onnxruntime",
    )

    def estimate(
        self,
        config: ExportOnnxConfig,
        parent: ModelFacts,
        context: PlanContext,
    ) -> Estimate:
        """The weights as they are, and a graph; tracing takes most of the time.

        Raises:
            RequirementError: fields of a language model for another.
        """
        if parent.family not in {None, _LANGUAGE_MODELS} and config.decoder != DecoderConfig():
            told = ", ".join(f"`{name}`" for name in sorted(config.decoder.model_fields_set))
            raise RequirementError(
                f"`decoder:` is of language models, and this is of the family {parent.family}: {told}",
                remedy="leave `decoder:` out",
            )
        if parent.parameters is None:
            return Estimate(model=parent)
        reference = 4 * parent.parameters  # torch's, in float32
        weights = parent.size_bytes or reference
        facts = ModelFacts(
            parent.family, parent.config, parent.parameters, parent.macs, weights + _GRAPH_BYTES
        )
        ranges = config.decoder.int8_kv_cache
        windows = 0 if ranges is None else ranges.num_samples
        return Estimate(
            facts,
            _BASE_SECONDS + (3e-9 + windows * 5e-9) * weights,
            _BASE_MEMORY_BYTES + reference + _COPIES * weights,
            facts.size_bytes,
        )

    def requires(self, config: ExportOnnxConfig, parent: Artifact, context: PassContext) -> None:
        """The model can be opened, has the dimensions that the config names, and its weights are finite."""
        from compressor.models.checkpoint.safetensors_files import check_finite
        from passes.export_onnx.decoder.pipeline import check, is_decoder
        from passes.export_onnx.pipeline import check_integers, traced_inputs

        if is_decoder(parent.model):
            check(config, parent.model)
        else:
            traced_inputs(config, parent.model)
            check_integers(parent.model)
        check_finite(parent.model)

    def run(
        self, config: ExportOnnxConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Trace, strip, simplify, check, write, compare; or build, write, compare."""
        from passes.export_onnx.decoder.pipeline import export_decoder, is_decoder
        from passes.export_onnx.pipeline import export

        return (export_decoder if is_decoder(parent.model) else export)(
            config, parent.model, out, context
        )

    def ensures(
        self,
        config: ExportOnnxConfig,
        parent: Artifact,
        out: Path,
        context: PassContext,
    ) -> None:
        """ONNX Runtime opens it, with the family's inputs and outputs."""
        from passes.export_onnx.pipeline import check_interface

        check_interface(parent.model, out, context.threads)
