"""A packed language model as a folder of MNN's engine for language models.

The weights are not rounded again; MNN computes the folder, and its logits and tokens are compared
with the checkpoint's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import ParityError, PassError, RequirementError
from compressor.graphs.decoder.stored_names import stored_names
from compressor.models.checkpoint.companions import copy_licences
from compressor.models.checkpoint.generation_settings import read_special_tokens
from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.checkpoint.weight_files import read_weight_files
from compressor.models.quantized.packed_checkpoint import PackedTensors
from compressor.runtimes.formats import open_session
from compressor.runtimes.mnn.language_model import (
    CONFIG,
    LANGUAGE_CONFIG,
    LANGUAGE_MODEL,
    TOKENIZER_FILE,
    WEIGHTS,
    MnnLanguageSession,
)
from passes.common.converted_parity import beyond, parity_batches
from passes.common.graph_comparison import OutputDifference, compare_runs
from passes.common.graph_conversion import describe_failure
from passes.common.reproducible_child import run_module
from passes.export_mnn.config import ExportMnnConfig
from passes.export_mnn.decoder_graph import HEAD, DecoderGraph, DecoderSizes
from passes.export_mnn.decoder_limits import BLOCK, GRID_REMEDY, decoder_fields, grid_problem
from passes.export_mnn.decoder_operators import replace_kept_nodes
from passes.export_mnn.decoder_weights import StoredLayer, WeightFile
from passes.export_mnn.identity import with_content_uuid
from passes.export_mnn.tokenizer_file import TOKENIZER, tokenizer_bytes

_EMBEDDING = "model.embed_tokens"
_GRAPH, _NET, _JSON = "decoder.onnx", "decoder.mnn", "decoder.json"
_LIMITS = {"float16": 0.01, "int8": 0.1}
_TEXTS = (
    "Hello there, isn't it 1234 or 5.6?\n\n  def f(x):\n\treturn x**2",
    "打开设置，把亮度调到 50%。 Ümlaut, naïve, 日本語 👩‍👩‍👧",
)
"""Texts whose tokens are compared."""


class DecoderExport:
    """Export of one packed checkpoint."""

    def __init__(self, config: ExportMnnConfig, tree: dict[str, Any], folder: Path) -> None:
        """Read the headers.

        Args:
            config: of the pass.
            tree: config.json, which ``check_decoder`` accepts.
            folder: the checkpoint.
        """
        self._config, self._folder = config, folder
        self._tables = config.tables or "float16"
        self._fields = decoder_fields(tree)
        self._sizes = DecoderSizes.of_fields(self._fields)
        weights = read_weight_files(folder)
        self._files = StoredTensors(weights, stored_names(tree, weights))
        self._packed = PackedTensors(self._files, tree)
        self._is_tied = bool(self._fields.get("tie_word_embeddings", False))

    def check(self) -> None:
        """Check that the file can hold every layer, and the tokenizer.

        Raises:
            RequirementError: it cannot; the message names every offender.
        """
        packed = self._packed
        problems = [
            f"\n        {name}: {problem}"
            for name in packed.layers
            if (problem := grid_problem(packed.grid(name), packed.size(name)[1])) is not None
        ]
        if self._tables == "int8" and self._sizes.hidden % BLOCK:
            problems.append(
                f"\n        {_EMBEDDING}: rows of {self._sizes.hidden} (`tables: int8`)"
            )
        if problems:
            raise RequirementError(
                f"MNN's blocks do not hold these layers:{''.join(problems)}",
                remedy=GRID_REMEDY,
            )
        tokenizer_bytes(self._folder, self._ends())

    def write(self, out: Path, context: PassContext) -> PassOutput:
        """Write the folder, and compare it with the checkpoint in MNN.

        Raises:
            PassError: MNN's converter failed.
            ParityError: MNN computes other logits, or splits texts into other tokens.
        """
        net = self._converted_graph(out)
        context.progress("weights", 1, 3, {})
        layers, table, rounded = self._write_weights(out / WEIGHTS)
        replace_kept_nodes(net, layers)
        (out / _JSON).write_text(json.dumps(net), encoding="utf-8")
        _run_converter(["-f", "JSON", "--modelFile", _JSON, "--MNNModel", LANGUAGE_MODEL], out)
        (out / _JSON).unlink()
        model = out / LANGUAGE_MODEL
        model.write_bytes(with_content_uuid(model.read_bytes()))
        self._write_settings(out, table)
        copy_licences(self._folder, out)
        context.progress("compare", 2, 3, {})
        self._compare_tokens(out)
        differences = self._compare(out, context)
        files = (LANGUAGE_MODEL, WEIGHTS, TOKENIZER_FILE)
        return PassOutput(
            {
                "bytes": sum((out / name).stat().st_size for name in files),
                "packed_layers": len(self._packed.layers),
                "rounded_tables": rounded,
                "against_parent": {name: each.row() for name, each in differences.items()},
            }
        )

    def _converted_graph(self, out: Path) -> dict[str, Any]:
        """Return the graph without weights, as MNN's converter writes it in JSON."""

        def vector(name: str) -> np.ndarray[Any, Any]:
            values: np.ndarray[Any, Any] = self._files.read(name).float().numpy()
            return values

        graph = DecoderGraph(self._sizes, self._packed.shapes(), vector)
        onnx.save(graph.model(), out / _GRAPH)
        options = ["--allowCustomOp", "--transformerFuse"]
        _run_converter(["-f", "ONNX", "--modelFile", _GRAPH, "--MNNModel", _NET, *options], out)
        _run_converter(["-f", "MNN", "--modelFile", _NET, "--JsonFile", _JSON], out)
        net: dict[str, Any] = json.loads((out / _JSON).read_text(encoding="utf-8"))
        for name in (_GRAPH, _NET, _JSON):
            (out / name).unlink()
        return net

    def _write_weights(
        self, path: Path
    ) -> tuple[dict[str, StoredLayer], list[int], dict[str, float]]:
        """Write all linear layers and the table of tokens.

        Returns:
            The layers by name, the place of the table, and the relative errors of what was rounded.
        """
        layers, rounded = {}, {}
        with WeightFile(path) as file:
            for name in self._packed.layers:
                layers[name] = file.packed(self._packed.layer(name), self._bias(name))
            plain = [
                name.removesuffix(".weight")
                for name, shape in self._packed.shapes().items()
                if len(shape) == 2 and name.removesuffix(".weight") not in layers
            ]
            if self._is_tied:
                plain = [name for name in plain if name != HEAD]
            for name in plain:
                store = file.rounded if self._stores_bytes(name) else file.float16
                layers[name], error = store(self._weight(name), self._bias(name))
                if error:
                    rounded[name] = error
        if self._is_tied:
            layers[HEAD] = layers[_EMBEDDING]
        is_bytes = self._stores_bytes(_EMBEDDING)
        table = layers[_EMBEDDING].as_table(*((8, BLOCK) if is_bytes else (16, 0)))
        return layers, table, rounded

    def _stores_bytes(self, name: str) -> bool:
        return self._tables == "int8" and name in {_EMBEDDING, HEAD}

    def _weight(self, name: str) -> Tensor:
        return self._files.read(f"{name}.weight")

    def _bias(self, name: str) -> np.ndarray[Any, Any]:
        shapes = self._packed.shapes()
        if f"{name}.bias" in shapes:
            values: np.ndarray[Any, Any] = self._files.read(f"{name}.bias").float().numpy()
            return values
        return np.zeros(shapes[f"{name}.weight"][0], np.float32)

    def _ends(self) -> list[int]:
        stated = read_special_tokens(self._folder).get("eos_token_id")
        ends = stated if stated is not None else self._fields.get("eos_token_id")
        return list(ends) if isinstance(ends, list) else [] if ends is None else [ends]

    def _write_settings(self, out: Path, table: list[int]) -> None:
        """Write the tokenizer, the description of the model, and how it is run by default."""
        (out / TOKENIZER_FILE).write_bytes(tokenizer_bytes(self._folder, self._ends()))
        sizes = self._sizes
        description: Mapping[str, Any] = {
            "model_type": "llm",
            "hidden_size": sizes.hidden,
            "layer_nums": sizes.layers,
            "attention_mask": "float",
            "attention_type": "full",
            "key_value_shape": [2, 1, 0, sizes.key_heads, sizes.head_width],
            "is_visual": False,
            "tie_embeddings": table,
            "vocab_size": sizes.vocabulary,
            "context_length": int(self._fields.get("max_position_embeddings", 2048)),
        }
        settings = {
            "llm_model": LANGUAGE_MODEL,
            "llm_weight": WEIGHTS,
            "tokenizer_file": TOKENIZER_FILE,
            "backend_type": "cpu",
            "thread_num": 4,
            "precision": "low",
            "memory": "low",
        }
        for name, fields in ((LANGUAGE_CONFIG, description), (CONFIG, settings)):
            (out / name).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")

    def _compare_tokens(self, out: Path) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._folder / TOKENIZER))
        with closing(MnnLanguageSession(out, 1, "high")) as model:
            for text in _TEXTS:
                expected, found = tokenizer.encode(text).ids, model.tokens(text)
                if found != expected:
                    raise ParityError(
                        f"MNN splits {text!r} into the tokens {found}, and {TOKENIZER} into "
                        f"{expected}",
                        remedy="`export-gguf` and `export-onnx` make files of language models "
                        "that phones run",
                    )

    def _compare(self, out: Path, context: PassContext) -> dict[str, OutputDifference]:
        """Compare logits in MNN, with weights multiplied in float32, with the checkpoint's.

        Raises:
            ParityError: they differ by more than the limit.
        """
        parity = self._config.parity
        batches = list(parity_batches(parity, self._folder, context, "packed"))
        session = MnnLanguageSession(out, context.threads, "high")
        with (
            open_session("packed", self._folder, threads=context.threads) as reference,
            session,
        ):
            differences = compare_runs(reference.run, session.run, batches)
        limit = parity.relative_error or _LIMITS[self._tables]
        if wrong := beyond(limit, differences):
            raise ParityError(
                f"MNN computes other logits than the checkpoint, beyond a relative error of "
                f"{limit:g}:\n" + "\n".join(wrong),
                remedy="use `export-gguf` for the phone, or raise `parity.relative_error` if the "
                "difference is acceptable",
            )
        return differences


def _run_converter(arguments: list[str], out: Path) -> None:
    """Run MNN's converter in a folder.

    Raises:
        PassError: it failed, or wrote nothing, which it reports as a success.
    """
    process = run_module("passes.export_mnn.converter", arguments, out)
    target = out / next(
        value for option, value in pairwise(arguments) if option in {"--MNNModel", "--JsonFile"}
    )
    if process.returncode or not target.is_file():
        raise PassError(
            f"MNN's converter wrote no {target.name} and {describe_failure(process, out)}",
            remedy="install the version of MNN that constraints.txt names",
        )
