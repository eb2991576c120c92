"""The compile process: its output, the parser's errors, and crashes."""

import subprocess
import sys

import pytest

from compressor.errors import PassError
from passes.common import reproducible_child
from tests.support.engines import (
    SAMPLES,
    build_engine,
    cnn,
    fields_of,
    model_of,
    node,
    save_parent,
    transformer,
)


def test_output_of_the_library_stays_out_of_standard_output(tmp_path, capfd):
    parent = save_parent(transformer(), tmp_path / "onnx")
    build_engine(fields_of("transformer"), parent, SAMPLES["transformer"], tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_an_operator_that_only_the_parser_refuses_is_named(tmp_path):
    model = model_of([node("Unique", "x", "logits")], {}, ("n", 4))
    profiles = {"x": {"min": (1, 4), "opt": (1, 4), "max": (4, 4)}}
    fields = {"precision": "fp32", "profiles": profiles}
    parent = save_parent(model, tmp_path / "onnx")
    with pytest.raises(PassError, match="Unique logits") as caught:
        build_engine(fields, parent, SAMPLES["cnn"], tmp_path / "out")
    assert "Cuda" not in str(caught.value)


def test_a_crash_of_the_compiler_fails_the_step_with_its_last_output(tmp_path, monkeypatch):
    crash = "import os, sys; print('about to', file=sys.stderr, flush=True); os.abort()"
    run = subprocess.run
    monkeypatch.setattr(
        reproducible_child.subprocess,
        "run",
        lambda _, **options: run([sys.executable, "-c", crash], **options),
    )
    parent = save_parent(cnn(), tmp_path / "onnx")
    with pytest.raises(
        PassError,
        match=r"was killed by signal 6 \(Aborted\) while building model\.onnx for sm86:\n    about",
    ):
        build_engine(fields_of("cnn"), parent, SAMPLES["cnn"], tmp_path / "out")
