"""Programs of torch.export (.pt2): behind the permission, with layers that passes find."""

from __future__ import annotations

import base64
import copy
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.analysis.model_report import report_path
from compressor.config.permission import allow_code
from compressor.engine.plan.source_model import ModuleModel
from compressor.errors import ModelError, UsageError
from compressor.models.architecture import Architecture
from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.families.module.family import Module
from compressor.models.families.module.programs import (
    build_program,
    load_program,
    program_text,
)
from compressor.models.families.module.weights import read_weights, set_weights
from compressor.models.missing import missing
from compressor.runtimes.formats import recognize
from passes.common.config import TrainingConfig, training_problems

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about its own archives


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(image)).relu().mean((2, 3)) * scale)


def save(file: Path, *, keywords: bool = False, dynamic: bool = True) -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    nn.init.uniform_(net.norm.running_mean)
    tensors = {"image": torch.randn(2, 3, 8, 8), "scale": torch.ones(2, 4)}
    size = {0: torch.export.Dim("batch")} if dynamic else None
    shapes = dict.fromkeys(tensors, size)
    args, kwargs = ((), tensors) if keywords else (tuple(tensors.values()), {})
    torch.export.save(torch.export.export(net, args, kwargs, dynamic_shapes=shapes), file)
    return net


@pytest.mark.parametrize("keywords", [False, True], ids=["position", "keyword"])
def test_a_program_is_a_module_with_layers(tmp_path: Path, keywords: bool) -> None:
    net = save(tmp_path / "net.pt2", keywords=keywords)
    stored = recognize(tmp_path / "net.pt2")
    assert stored.format.name == "program"
    allow_code()
    source = stored.format.module_source(stored.path)
    assert source is not None
    assert [spec.shape for spec in source.config.input_specs()] == [
        ("batch", 3, 8, 8),
        ("batch", 4),
    ]
    module = Module().build(source.config)
    set_weights(module, read_weights(stored.path)[0])
    batch = {"image": torch.randn(3, 3, 8, 8), "scale": torch.rand(3, 4)}
    with torch.no_grad():
        expected = net(**batch)
        assert torch.allclose(copy.deepcopy(module)(**batch)["logits"], expected, atol=1e-6)
    layers = {name: type(layer) for name, layer in module.named_modules() if name}
    assert layers == {"stem": nn.Conv2d, "norm": nn.BatchNorm2d, "head": nn.Linear}
    assert Module().macs(source.config) == 9 * 27 * 4 + 4 * 5


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 8, 3, stride=2, groups=2)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 6)
        self.last = nn.BatchNorm1d(6)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return self.last(self.head(self.norm(self.stem(wave)).relu().mean(2)))


def test_layers_of_one_dimension_are_layers_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, wave = Waves().eval(), torch.randn(2, 4, 12)
    nn.init.uniform_(net.norm.running_mean)
    sizes = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("samples", min=8, max=99)},)
    program = torch.export.export(net, (wave,), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "net.pt2")
    allow_code()
    stored = recognize(tmp_path / "net.pt2")
    source = stored.format.module_source(stored.path)
    assert source is not None
    module = Module().build(source.config)
    set_weights(module, read_weights(stored.path)[0])
    longer = torch.randn(3, 4, 31)
    with torch.no_grad():
        assert torch.allclose(module(wave=longer)["logits"], net(longer), atol=1e-6)
    layers = {name: type(layer) for name, layer in module.named_modules() if name}
    assert layers == {name: type(layer) for name, layer in net.named_modules() if name}


def test_a_program_is_opened_only_where_code_is_allowed(tmp_path: Path) -> None:
    save(tmp_path / "net.pt2")
    stored = recognize(tmp_path / "net.pt2")
    assert stored.format.tensor_listing(stored.path)
    with pytest.raises(UsageError, match="may hold pickles"):
        stored.format.module_source(stored.path)


def test_a_program_of_one_batch_size_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "net.pt2", dynamic=False)
    allow_code()
    with pytest.raises(ModelError, match="one size of the first dimension of image"):
        recognize(tmp_path / "net.pt2").format.module_source(tmp_path / "net.pt2")


def test_a_program_is_neither_trained_nor_cut(tmp_path: Path) -> None:
    save(tmp_path / "net.pt2")
    allow_code()
    source = recognize(tmp_path / "net.pt2").format.module_source(tmp_path / "net.pt2")
    assert source is not None
    architecture = Architecture(Module(), source.config)
    [lack] = missing(architecture, [CuttableAxes])
    assert lack.label == CuttableAxes.label and "`model: {python: my_model.py:build" in lack.remedy
    (problem,) = training_problems(TrainingConfig(steps=1), "training", architecture)
    assert (problem.field, "fixed to its evaluation mode" in problem.reason) == ("training", True)


def test_an_unopened_program_lists_training_and_pruning_as_unsuitable(tmp_path: Path) -> None:
    save(tmp_path / "net.pt2")
    passes = {entry.name: entry for entry in report_path(tmp_path / "net.pt2").passes}
    assert [name for name in ("awq", "export-onnx", "qat") if not passes[name].suitable] == []
    assert not passes["prune"].suitable and not passes["train"].suitable
    assert "fixed to its evaluation mode" in passes["train"].reasons[0]


def test_a_program_has_no_distribution_among_its_tools(tmp_path: Path) -> None:
    save(tmp_path / "net.pt2")
    allow_code()
    source = recognize(tmp_path / "net.pt2").format.module_source(tmp_path / "net.pt2")
    assert source is not None
    assert ModuleModel(source).tools == ("torch",)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_a_program_is_copied_without_warnings(tmp_path: Path) -> None:
    save(tmp_path / "net.pt2")
    allow_code()
    source = recognize(tmp_path / "net.pt2").format.module_source(tmp_path / "net.pt2")
    assert source is not None
    copy.deepcopy(Module().build(source.config))


def test_programs_are_stored_small_and_older_ones_open(tmp_path: Path) -> None:
    save(tmp_path / "net.pt2")
    allow_code()
    program = load_program(tmp_path / "net.pt2", "net.pt2")
    text = program_text(program)
    content = zlib.decompress(base64.b64decode(text))
    assert len(text) < len(content) / 2
    stored = load_program(content, "the program")
    assert not stored.example_inputs, "the user's data are not part of a model"
    older = base64.b64encode(content).decode()
    names = [list(build_program(entry).state_dict()) for entry in (text, older)]
    assert names[0] == names[1] != []


class TakesList(nn.Module):
    def forward(self, pair: list[torch.Tensor]) -> torch.Tensor:
        return pair[0] + pair[1]


def test_a_program_that_takes_a_list_is_refused(tmp_path: Path) -> None:
    size = {0: torch.export.Dim("batch")}
    pair = [torch.ones(2, 3), torch.ones(2, 3)]
    program = torch.export.export(TakesList(), (pair,), dynamic_shapes={"pair": [size, size]})
    torch.export.save(program, tmp_path / "net.pt2")
    allow_code()
    with pytest.raises(ModelError, match="takes a list of tensors"):
        recognize(tmp_path / "net.pt2").format.module_source(tmp_path / "net.pt2")


def test_damaged_weights_are_found(tmp_path: Path) -> None:
    net = save(tmp_path / "net.pt2")
    content = (tmp_path / "net.pt2").read_bytes()
    weight = net.head.weight.detach().numpy().tobytes()
    (tmp_path / "net.pt2").write_bytes(content.replace(weight, weight[:4] * (len(weight) // 4)))
    allow_code()
    with pytest.raises(ModelError, match="is damaged at net/data/weights/"):
        recognize(tmp_path / "net.pt2").format.module_source(tmp_path / "net.pt2")
