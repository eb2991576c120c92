"""Functions that build modules: what they print, draw at random, and do beside building."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor.config.permission import allow_code
from compressor.errors import ModelError
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.module.config import ModuleConfig
from compressor.models.families.module.determinism import check_determinism, check_initialization
from compressor.models.families.module.family import Module
from compressor.models.families.module.interface import adapt
from compressor.models.families.module.probing import complete
from passes.export_onnx.compute_types import computes_in_half, in_float32

NET = """\
import os, random, sys
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 4)
        {init}

    def forward(self, x):
        {forward}
        return {returned}
"""


def config_of(
    init: str = "", forward: str = "", returned: str = "self.head(x)", outputs: Any = None
) -> ModuleConfig:
    allow_code()
    text = NET.format(init=init or "pass", forward=forward or "pass", returned=returned)
    fields = {
        "python": "net.py:Net",
        "code": {"net.py": text},
        "inputs": [{"name": "x", "shape": ["batch", 16]}],
    }
    return complete(ModuleConfig.model_validate_json(json.dumps(fields)), outputs)


def saved(config: ModuleConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    Module().save(Module().build(config), config, folder)
    return folder


def test_what_code_prints_and_where_it_moves_disturbs_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path.cwd()
    config_of(init="print('a note'); os.chdir('/')")
    captured = capsys.readouterr()
    assert (captured.out, Path.cwd()) == ("", folder)
    assert "a note" in captured.err


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("sys.exit(3)", "failed: SystemExit: 3"),
        ("self.head.cuda()", r"without `.cuda\(\)`"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_code_that_ends_the_program_or_needs_a_gpu_is_refused(init: str, expected: str) -> None:
    with pytest.raises(ModelError) as error:
        config_of(init=init)
    assert error.match(expected) or expected in str(error.value.remedy)


def test_a_forward_that_needs_a_gpu_is_refused() -> None:
    with pytest.raises(ModelError, match=r"`forward` failed with x \[2, 16\]: AssertionError"):
        config_of(forward="assert x.device.type == 'cuda'")


def test_generators_of_python_and_numpy_follow_the_seed(tmp_path: Path) -> None:
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    draws = "self.head.bias.data[:2] = torch.tensor([np.random.rand(), random.random()])"
    config = config_of(init=draws)
    check_initialization(config, saved(config, tmp_path), 0)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], state)


def test_weights_without_a_seed_are_refused(tmp_path: Path) -> None:
    config = config_of(init="self.head.bias.data[0] = int.from_bytes(os.urandom(2)) / 7")
    with pytest.raises(ModelError, match=r"net.py:Net gives other weights each time.*: head.bias"):
        check_initialization(config, saved(config, tmp_path), 0)


@pytest.mark.parametrize(
    ("init", "forward", "expected"),
    [
        ("self.scale = torch.randn(16)", "x = x * self.scale", "its state dict does not hold"),
        ("", "x = x + torch.rand_like(x)", "it draws random numbers, or changes its own state"),
        ("self.calls = 0", "self.calls += 1; x = x * self.calls", "changes its own state"),
    ],
    ids=["constant", "noise", "state"],
)
def test_weights_have_to_determine_the_outputs(
    tmp_path: Path, init: str, forward: str, expected: str
) -> None:
    config = config_of(init=init, forward=forward)
    with pytest.raises(ModelError, match=expected):
        check_determinism(config, saved(config, tmp_path))


def test_constants_that_code_computes_are_accepted(tmp_path: Path) -> None:
    config = config_of(init="self.scale = torch.arange(16.0)", forward="x = x * self.scale")
    check_determinism(config, saved(config, tmp_path))


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("[{'boxes': row} for row in self.head(x)]", "another number of tensors for one sample"),
        ("self.head(x), self.head(x).mean()", r"output_1 \[\] for 2 samples"),
        ("self.head(x), self.head(x).T", r"output_1 \[4, 2\] for 2 samples"),
    ],
    ids=["list", "scalar", "transposed"],
)
def test_outputs_have_the_sample_first(returned: str, expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        config_of(returned=returned)


def test_outputs_that_are_not_named_may_have_any_shape() -> None:
    config = config_of(returned="self.head(x), x.T", outputs={"logits": (0,)})
    assert list(config.output_paths) == ["logits"]


@pytest.mark.parametrize(
    ("init", "forward", "kept"),
    [
        ("self.double()", "x = x.double()", torch.float64),
        ("self.half()", "x = x.half()", torch.float16),
        ("self.bfloat16()", "x = x.to(self.head.weight.dtype)", torch.float32),
    ],
)
def test_export_keeps_types_that_the_code_casts_to(
    tmp_path: Path, init: str, forward: str, kept: torch.dtype
) -> None:
    folder = saved(config_of(init=init, forward=forward), tmp_path)
    module = in_float32(
        load_module(folder), read_description(folder), {"x": np.ones((2, 16), np.float32)}
    )
    assert {weight.dtype for weight in module.parameters()} == {kept}
    assert computes_in_half(module) is (kept == torch.float16)


class Replaced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)

    def tripled(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = 3 * self.head(x)
        return result

    def forward(self, x: torch.Tensor, again: bool = True) -> torch.Tensor:
        result: torch.Tensor = self.head(x)
        return self(x, again=False) + self.forward(x, False) if again else result


def test_a_module_may_call_itself() -> None:
    module, x = Replaced(), torch.randn(2, 16)
    adapted = adapt(module, ("x",), {"logits": ()}, "keyword")
    assert torch.equal(adapted(x=x)["logits"], 2 * module.head(x))


def test_another_method_in_place_of_forward_is_called() -> None:
    module, x = Replaced(), torch.randn(2, 16)
    module.__dict__["forward"] = module.tripled
    adapted = copy.deepcopy(adapt(module, ("x",), {"logits": ()}, "position"))
    assert torch.equal(adapted(x=x)["logits"], 3 * module.head(x))


def test_a_function_in_place_of_forward_is_refused() -> None:
    module = Replaced()
    module.__dict__["forward"] = lambda x: x
    with pytest.raises(ModelError, match="replaced on the module by a function"):
        adapt(module, ("x",), {"logits": ()}, "position")


def test_wrappers_of_compilation_are_left_out_and_lazy_layers_refused() -> None:
    config = config_of(init="self.head = torch.compile(self.head)")
    assert list(Module().build(config).state_dict()) == ["head.weight", "head.bias"]
    with pytest.raises(ModelError, match=r"uninitialized parameters: head\.weight, head\.bias"):
        config_of(init="self.head = nn.LazyLinear(4)")


def test_layers_of_torch_transformers_are_counted() -> None:
    layer = "nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)"
    config = config_of(init=f"self.layer = {layer}", returned="self.layer(x[:, None])[:, 0]")
    attention = 16 * 48 + 16 * 16 + 2 * 16
    assert Module().macs(config) == attention + 2 * 16 * 32


def test_a_module_that_merges_its_weights_for_evaluation_can_be_copied(tmp_path: Path) -> None:
    config = config_of(
        init="self.train = lambda _=0: vars(self).update(merged=2 * self.head.weight) or self",
        returned="x @ self.merged.T if hasattr(self, 'merged') else 2 * x @ self.head.weight.T",
    )
    module = load_module(saved(config, tmp_path))
    assert not module.merged.requires_grad
    copy.deepcopy(module)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("(self.head(x), x) if self.training else self.head(x)", None),
        ("[x[0, 0].item()] if self.training else self.head(x)", "returns list without a tensor"),
        ("self.head(x[:, :9] if self.training else x)", "in training mode `forward` fails: Run"),
    ],
    ids=["auxiliary", "nothing", "error"],
)
def test_a_module_is_tried_in_training_mode_before_it_is_trained(
    returned: str, expected: str | None
) -> None:
    problem = Module().training_problem(config_of(returned=returned))
    assert (problem is None) == (expected is None)
    assert problem is None or expected in problem[0]
