"""The outputs of a torch model that repeats the choices of a graph.

Detectors choose regions by ``topk``. Scores may be equal, as those of masked regions are, or differ
by less than two runtimes round; then torch and the graph choose other regions, and every output
behind the choice differs. So the parent is computed with the graph's choices, provided that its own
scores rate them like its own choices.

Shapes: R rows, N candidates, K chosen ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from compressor.data.contract import Batch
from compressor.graphs.files import MODEL, read_graph
from compressor.graphs.values import Array
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.onnxruntime.inference import CPU, run_limited, session_options
from compressor.runtimes.session import Session, match_inputs
from passes.export_onnx.parity import Limits, cosines

_FUNCTIONS = {torch.topk, Tensor.topk}
_NOISE = 1e-6
"""Rounding of float32, relative to the largest score."""
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class RepeatedChoices:
    """A torch model that repeats the choices of its graph."""

    def __init__(
        self, reference: Session, folder: Path, inputs: Sequence[InputSpec], limits: Limits
    ) -> None:
        """Remember the model and its graph, which is opened when it is needed.

        Args:
            reference: the torch model.
            folder: folder of the graph.
            inputs: inputs of the graph.
            limits: of the comparison; they apply to the scores of choices too.
        """
        self._reference, self._folder = reference, folder
        self._inputs, self._limits = inputs, limits

    @cached_property
    def _model(self) -> onnx.ModelProto:
        return read_graph(self._folder)

    @cached_property
    def _names(self) -> list[str]:
        """Names of the chosen indices."""
        nodes = [node for node in self._model.graph.node if node.op_type == "TopK"]
        return [node.output[1] for node in nodes if node.output[1:] and node.output[1]]

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        outputs = self._model.graph.output
        present = {value.name for value in outputs}
        outputs.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
            for name in self._names
            if name not in present
        )
        options = session_options()
        options.add_session_config_entry(_DATA_FOLDER, str(self._folder))
        return onnxruntime.InferenceSession(self._model.SerializeToString(), options, providers=CPU)

    def outputs(self, batch: Batch) -> Batch | None:
        """Return the outputs of a batch.

        Returns:
            None if the graph makes no choices, others than torch could make, or worse ones.
        """
        if not self._names:
            return None
        chosen = run_limited(
            self._session,
            self._names,
            match_inputs(batch, self._inputs),
            self._folder / MODEL,
        )
        repeat = _Repeat(chosen, self._limits)
        with repeat:
            results = self._reference.run(batch)
        return results if repeat.is_complete else None


class _Repeat(TorchFunctionMode):
    """Replace the indices that ``topk`` returns by others."""

    def __init__(self, chosen: Sequence[Array], limits: Limits) -> None:
        super().__init__()
        self._chosen, self._limits, self._all_alike = list(chosen), limits, True

    @property
    def is_complete(self) -> bool:
        """True if every choice was repeated, and torch rates each like its own."""
        return self._all_alike and not self._chosen

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch; ``topk`` with the next choice of the graph."""
        del types
        result = function(*args, **(kwargs or {}))
        if function not in _FUNCTIONS:
            return result
        scores, dim = _scores(*args, **(kwargs or {}))
        index = torch.from_numpy(self._chosen.pop(0)) if self._chosen else None
        if index is None or index.shape != result.indices.shape:
            self._all_alike = False
            return result
        values = scores.gather(dim, index)
        best, values_chosen, all_scores = (
            _rows(tensor.double(), dim) for tensor in (result.values, values, scores)
        )
        self._all_alike &= rated_alike(best, values_chosen, all_scores, self._limits)
        self._all_alike &= all(len(np.unique(row)) == len(row) for row in _rows(index, dim))
        return torch.return_types.topk((values, index))


def _scores(input: Tensor, k: int, dim: int = -1, *_: Any, **others: Any) -> tuple[Tensor, int]:  # noqa: A002
    del k, others
    return input, dim


def _rows(values: Tensor, dim: int) -> Array:
    """Return values as rows along a dimension."""
    rows: Array = values.movedim(dim, -1).reshape(-1, values.shape[dim]).numpy()
    return rows


def rated_alike(best_RK: Array, chosen_RK: Array, scores_RN: Array, limits: Limits) -> bool:
    """Return True if chosen scores equal the best ones within the limits.

    Scores count from the mean of their row, so that a common offset does not make all alike.
    """
    delta_RK = np.abs(best_RK - chosen_RK)
    centred_RN = scores_RN - scores_RN.mean(axis=1, keepdims=True)
    spread_R1, size_R1 = (
        np.abs(values).max(axis=1, keepdims=True) for values in (centred_RN, scores_RN)
    )
    if (delta_RK <= limits.tie * spread_R1 + _NOISE * size_R1).all():
        return True
    mean_R1 = scores_RN.mean(axis=1, keepdims=True)
    is_similar = cosines(best_RK - mean_R1, chosen_RK - mean_R1).min() >= limits.cosine
    return bool(is_similar and delta_RK.max() <= limits.max_abs)
