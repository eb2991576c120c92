"""Errors of modules that torch cannot trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import PassError
from passes.export_onnx.tracing import GraphInterface, trace
from passes.export_onnx.tracing_errors import export_error


class Branches(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        if x.sum() > 0:
            return (x,)
        return (-x,)


def test_code_that_reads_values_is_named_with_its_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    interface = GraphInterface(["x"], ["y"], ({0: "batch"},), 20)
    with pytest.raises(PassError, match=r"at .*test_tracing_errors.py, line 16: ") as error:
        trace(Branches(), (torch.ones(2, 3),), interface)
    assert "torch.where" in str(error.value.remedy)
    assert "GraphModule" not in "".join(capfd.readouterr())


def test_code_of_a_library_is_not_to_be_rewritten() -> None:
    text = (
        "## Exception summary\n\n<class 'torch.GuardOnDataDependentSymNode'>: data-dependent u0 > 1"
        '\n\nThe following call raised this error:\n  File "/v/site-packages/m.py", line 5, in f'
    )
    error = export_error(RuntimeError(text), ["x"], ({0: "batch"},))
    assert "m.py, line 5: GuardOnDataDependentSymNode: data-dependent u0 > 1" in error.what
    assert "ship the torch artifact" in str(error.remedy) and "torch.where" not in str(error.remedy)
