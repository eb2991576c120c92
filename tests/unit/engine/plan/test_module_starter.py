"""``init --from my_model.py`` writes a pipeline for an own module without running its code."""

from __future__ import annotations

import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from compressor.artifacts.store import Store
from compressor.config.permission import CODE_VARIABLE, allow_code
from compressor.data.contract import SourceContext
from compressor.engine.plan.module_starter import write_starter_for
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import make_plan
from compressor.errors import CompressError, ModelError, UsageError
from compressor.models.families.module.input_hints import input_hint
from compressor.models.families.module.libraries import Timm
from compressor.models.families.module.outline import Parameter
from tests.support.own_modules import write_own_files

STATED = '''\
from torch import nn, Tensor
class Block(nn.Module):
    def forward(self, x):
        return x
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = Block(), nn.Linear(4, 2)
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Return logits.

        Args:
            x: vectors, float32 [batch, 4].
        """
        return self.head(self.block(x)) * scale
def build(width=4):
    net = Net()
    return net.eval()
'''


@pytest.fixture(autouse=True)
def code_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CODE_VARIABLE, "")


def write(folder: Path, text: str, name: str = "net.py") -> Path:
    (folder / name).write_text(textwrap.dedent(text))
    return folder / name


def model_of(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text())["model"]
    return loaded


def test_a_module_that_states_its_inputs_can_be_planned_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, STATED)
    np.savez(tmp_path / "data.npz", x=np.zeros((64, 4), np.float32))
    written = write_starter_for(str(file), tmp_path / "out", tmp_path / "data.npz")
    assert written.missing == ()
    assert written.needs_code
    assert model_of(written.file) == {
        "python": "../net.py:build",
        "inputs": {"x": {"shape": ["batch", 4], "dtype": "float32"}},
    }
    allow_code()
    sources = SourceContext(written.file.parent, allow_code=True)
    plan = make_plan(load_pipeline(written.file), Store(tmp_path / "artifacts"), sources)
    assert [step.name for step in plan.steps] == ["source", "qat", "export-onnx"]


def test_nothing_runs_without_permission_and_the_rest_is_a_placeholder(tmp_path: Path) -> None:
    folder = write_own_files(tmp_path)
    mark = tmp_path / "ran"
    (folder / "layers.py").write_text(f"open({str(mark)!r}, 'w')\n")
    written = write_starter_for(str(folder / "tagger.py"), tmp_path / "out", None)
    assert not mark.exists()
    inputs = model_of(written.file)["inputs"]
    assert {name: spec["shape"] for name, spec in inputs.items()} == {"tokens": None, "mask": None}
    named = "\n".join(written.missing)
    assert all(name in named for name in ("inputs.tokens.shape", "inputs.mask.shape", "`path`"))
    with pytest.raises(CompressError) as caught:
        load_pipeline(written.file)
    assert str(caught.value).startswith("2 problems")
    text = written.file.read_text().replace("shape: null", "shape: [batch, length]")
    written.file.write_text(text)
    load_pipeline(written.file)


def test_the_users_samples_state_what_the_code_does_not(tmp_path: Path) -> None:
    source = write(tmp_path, STATED.replace("float32 [batch, 4]", "vectors"))
    np.savez(tmp_path / "x.npz", x=np.zeros((8, 4), np.float32), label=np.zeros(8, np.int64))
    written = write_starter_for(str(source), tmp_path / "new", tmp_path / "x.npz")
    assert not written.missing
    assert model_of(written.file)["inputs"] == {"x": {"shape": ["batch", 4], "dtype": "float32"}}
    assert "latency" in written.file.read_text()


def test_with_permission_the_signature_of_an_imported_module_is_read(tmp_path: Path) -> None:
    write_own_files(tmp_path)
    file = write(tmp_path, "from net import Net\ndef build():\n    return Net()\n", "entry.py")
    source = f"{file}:build"
    before = write_starter_for(source, tmp_path / "before", None)
    assert any("`model.inputs`" in line for line in before.missing)
    allow_code()
    after = write_starter_for(source, tmp_path / "after", None)
    assert list(model_of(after.file)["inputs"]) == ["x"]


def test_required_arguments_are_placeholders(tmp_path: Path) -> None:
    file = write(tmp_path, STATED.replace("width=4", "width, *, depth"))
    written = write_starter_for(str(file), tmp_path / "out", None)
    assert model_of(written.file)["arguments"] == {"width": None, "depth": None}
    assert "`model.arguments.width`" in written.missing[0]


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        (STATED, ":other", "no function or class 'other'"),
        (STATED + "def small():\n    return Net()\n", "", "several.*: build, small"),
        ("def f():\n    a = g()\n    a = a.eval()\n    return a\n", "", "no class derived"),
        ("x = 1\n", "", "no class derived from torch.nn.Module"),
        ("def (:\n", "", "line 1: is not valid Python"),
        (STATED, ":", "names no function"),
    ],
)
def test_a_file_without_exactly_one_builder_is_refused(
    tmp_path: Path, text: str, function: str, message: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ModelError, match=message):
        write_starter_for(f"{file}{function}", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_a_library_without_a_model_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no model"):
        write_starter_for("timm:", tmp_path / "out", None)
    with pytest.raises(ModelError, match="does not exist"):
        write_starter_for(str(tmp_path / "none.py"), tmp_path / "out", None)


def test_a_model_of_a_library_gets_pictures_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SimpleNamespace(input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    library = SimpleNamespace(
        list_models=lambda: ["net"],
        create_model=lambda _, **options: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)),
        get_pretrained_cfg=lambda *_, **options: settings,
    )
    monkeypatch.setattr(Timm, "_import", lambda _: library)
    written = write_starter_for("timm:net", tmp_path / "out", None)
    tree = yaml.safe_load(written.file.read_text())
    assert tree["model"] == {"timm": "net"}
    samples = tree["data"]["samples"]
    assert (samples["image_size"], samples["mean"], samples["std"]) == (8, [0.5] * 3, [0.5] * 3)
    assert not written.needs_code


@pytest.mark.filterwarnings("ignore")  # of torch, about its own archives
def test_a_program_gets_the_data_of_its_inputs_where_code_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    sizes = {"input": {0: torch.export.Dim("batch")}}
    program = torch.export.export(net, (torch.ones(2, 3, 8, 8),), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "net.pt2")
    monkeypatch.setenv(CODE_VARIABLE, "")
    with pytest.raises(UsageError, match="which may hold pickles"):
        write_starter_for(str(tmp_path / "net.pt2"), tmp_path / "out", None)
    allow_code()
    written = write_starter_for(str(tmp_path / "net.pt2"), tmp_path / "out", None)
    tree = yaml.safe_load(written.file.read_text())
    assert written.needs_code
    assert tree["data"]["samples"]["input"] == "input"
    assert [step["type"] for step in tree["passes"]] == ["qat", "export-onnx"]
    assert tree["passes"][1]["parity"] == {"data": "samples"}


@pytest.mark.parametrize(
    ("annotation", "line", "shape", "dtype"),
    [
        ("Float[Tensor, 'batch 3 h w']", "", ("batch", 3, "h", "w"), "float32"),
        ("torch.LongTensor", "x: ids [batch, length]", ("batch", "length"), "int64"),
        (
            "Tensor",
            "x (Tensor): pictures of (N, 3, 224, 224), uint8",
            ("batch", 3, 224, 224),
            "uint8",
        ),
        ("Tensor", "x (Tensor): the input", None, None),
        ("", "other: float32 [batch, 4]", None, None),
    ],
)
def test_annotations_and_docstrings_state_inputs(
    annotation: str, line: str, shape: tuple[int | str, ...] | None, dtype: str | None
) -> None:
    hint = input_hint(Parameter("x", annotation), line)
    assert (hint.shape, hint.dtype) == (shape, dtype)


def test_samples_of_an_optional_parameter_make_it_an_input_and_labels_do_not(
    tmp_path: Path,
) -> None:
    file = write(
        tmp_path,
        """
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(4, 2)
            def forward(self, *, x, mask=None, labels=None):
                hidden = x if mask is None else x * mask
                return {"logits": self.head(hidden), "hidden": hidden}
        def build():
            return Net()
        """,
    )
    vectors = np.zeros((64, 4), np.float32)
    labels = np.arange(64) % 2
    np.savez(tmp_path / "data.npz", x=vectors, mask=vectors, labels=labels, label=labels)
    for allowed in (False, True):
        if allowed:
            allow_code()
        written = write_starter_for(str(file), tmp_path / str(allowed), tmp_path / "data.npz")
        assert list(model_of(written.file)["inputs"]) == ["x", "mask"]
        evaluate = yaml.safe_load(written.file.read_text())["evaluate"]
        metrics = evaluate.get("accuracy", {}).get("metrics", [])
        assert metrics == (["top1", "agreement", "kl", "cosine:hidden"] if allowed else [])
