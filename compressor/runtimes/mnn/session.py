"""Sessions of MNN files, by MNN's own Python module."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import MissingExtraError, ModelError, PassError
from compressor.models.capabilities.signature import InputSpec, OutputSpec
from compressor.runtimes.call_limit import limited_call
from compressor.runtimes.mnn.silence import silent_stdout
from compressor.runtimes.session import Array, Session

_MODEL = "model.mnn"


class MnnSession(Session):
    """``model.mnn`` on the CPU, in full precision.

    MNN has no integers of 64 bits: arrays of other integers than int32 are converted.
    """

    def __init__(
        self,
        folder: Path,
        threads: int,
        inputs: tuple[InputSpec, ...],
        outputs: tuple[OutputSpec, ...],
    ) -> None:
        """Open the file.

        Args:
            folder: the model's folder.
            threads: threads of one operator.
            inputs: inputs of the graph that the file was converted from.
            outputs: its outputs.

        Raises:
            MissingExtraError: MNN is not installed.
            ModelError: MNN cannot open the file.
        """
        if find_spec("MNN") is None:
            raise MissingExtraError("MNN", "executing .mnn files", "mnn")
        with silent_stdout():  # the library prints what the processor supports
            from MNN import expr, nn
        self._expr = expr
        self.runtime = f"MNN {version('MNN')}"
        self.inputs, self.outputs = inputs, outputs
        self.output_names = tuple(output.name for output in outputs)
        file = folder / _MODEL
        try:
            with silent_stdout():
                self._module = nn.load_module_from_file(
                    str(file),
                    [spec.name for spec in inputs],
                    list(self.output_names),
                    precision_mode=expr.PrecisionMode.High,
                    thread_num=threads,
                )
        except (RuntimeError, SystemError, ValueError) as error:  # SystemError: it is truncated
            raise ModelError(
                f"MNN cannot open {file}: {error}", remedy="run `export-mnn` again"
            ) from error
        if self._module is None:
            raise ModelError(f"MNN cannot open {file}", remedy="run `export-mnn` again")

    def compute(self, feeds: Batch) -> Batch:
        """See ``Session.compute``.

        Raises:
            PassError: MNN failed inside the graph.
        """
        expr = self._expr
        values = [self._variable(feeds[spec.name]) for spec in self.inputs]
        with limited_call(feeds):
            results = self._module.forward(values)
        if len(results) != len(self.output_names):
            raise PassError(
                f"MNN failed inside the graph: it computed {len(results)} of "
                f"{len(self.output_names)} outputs"
            )
        outputs: Batch = {}
        for name, result in zip(self.output_names, results, strict=True):
            array = expr.convert(result, expr.NCHW)
            if 0 in array.shape:  # MNN reads no empty arrays
                outputs[name] = np.empty(array.shape, np.float32)
                continue
            if (read := array.read()) is None:
                raise PassError(f"MNN computed no values for the output {name}")
            outputs[name] = np.array(read).reshape(array.shape)
        return outputs

    def _variable(self, array: Array) -> object:
        is_float = array.dtype.kind == "f"
        values = array.astype(np.float32 if is_float else np.int32)
        dtype = self._expr.float if is_float else self._expr.int
        return self._expr.const(values, list(values.shape), self._expr.NCHW, dtype)

    def close(self) -> None:
        """Release the module."""
        del self._module
