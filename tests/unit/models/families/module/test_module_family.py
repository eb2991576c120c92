"""Family ``module``: counts, building, saving and loading, and sizes after pruning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor.config.permission import CODE_VARIABLE, allow_code
from compressor.errors import ModelError, UsageError
from compressor.models.capabilities.signature import Signature
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.facts import facts_of
from compressor.models.families.module.config import ModuleConfig
from compressor.models.families.module.family import Module
from compressor.models.families.module.probing import complete
from tests.support.own_modules import LAYERS, NET, TAGGER

NET_FIELDS: dict[str, Any] = {
    "python": "net.py:build",
    "code": {"net.py": NET, "layers.py": LAYERS},
    "inputs": [{"name": "image", "shape": ["batch", 3, 16, 16]}],
}
TAGGER_FIELDS: dict[str, Any] = {
    "python": "tagger.py:Tagger",
    "code": {"tagger.py": TAGGER},
    "inputs": [
        {"name": "tokens", "shape": ["batch", "length"], "dtype": "int64", "below": 20},
        {"name": "mask", "shape": ["batch", "length"]},
    ],
}


def config_of(fields: dict[str, Any], outputs: Any = None, **changed: Any) -> ModuleConfig:
    allow_code()
    return complete(ModuleConfig.model_validate_json(json.dumps(fields | changed)), outputs)


def test_parameters_and_macs_are_those_of_the_module() -> None:
    config = config_of(NET_FIELDS, ("logits", "pooled"))
    module = Module().build(config)
    parameters = Module().parameters(config)
    assert sum(parameters.values()) == sum(weight.numel() for weight in module.parameters())
    assert parameters["head"] == 8 * 3 + 3
    positions = 8 * 8
    macs = positions * (3 * 9 * 8 + 8 * 16 + 16 * 8) + 8 * 3
    assert Module().macs(config) == macs


def test_the_signature_follows_from_the_config() -> None:
    signature = Module().signature(config_of(NET_FIELDS, ("logits", "pooled"), unit="sample"))
    assert [spec.name for spec in signature.inputs] == ["image"]
    assert (signature.outputs, signature.classes) == (("logits", "pooled"), 3)
    assert Module().require(TrainingHeads, config_of(NET_FIELDS, ("logits", "pooled")))
    assert Module().capability(TrainingHeads, config_of(NET_FIELDS)) is None  # output_0, output_1


def test_keyword_inputs_a_recurrent_layer_and_a_dict_of_outputs() -> None:
    config = config_of(TAGGER_FIELDS, unit="token")
    assert (config.call, list(config.output_paths)) == ("keyword", ["logits", "states"])
    module = Module().build(config).eval()
    batch = {"tokens": torch.randint(20, (2, 5)), "mask": torch.ones(2, 5)}
    assert module(**batch)["states"].shape == (2, 5, 8)
    per_token = 2 * 4 * 8 * 8  # input and state of four gates
    assert Module().macs(config) == per_token


def test_a_saved_module_is_described_without_code_and_opened_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(NET_FIELDS, ("logits", "pooled"))
    module = Module().build(config).eval()
    Module().save(module, config, tmp_path)
    monkeypatch.setenv(CODE_VARIABLE, "")
    facts = facts_of(tmp_path)
    assert facts.parameters == sum(weight.numel() for weight in module.parameters())
    assert facts.macs
    assert facts.capability(Signature) is not None
    assert read_description(tmp_path).config == config
    with pytest.raises(UsageError, match="is code"):
        load_module(tmp_path)
    allow_code()
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_module(tmp_path)(image=image)["pooled"], module(image=image)["pooled"])


def test_a_smaller_module_has_its_own_counts() -> None:
    config = config_of(NET_FIELDS, ("logits", "pooled"))
    slim = Module().slim(config, arguments={"width": 4})
    assert Module().parameters(slim)["head"] == 4 * 3 + 3
    assert Module().build(slim)(image=torch.ones(1, 3, 16, 16))["pooled"].shape == (1, 4)


def test_sizes_replace_those_of_the_built_module(tmp_path: Path) -> None:
    config = config_of(NET_FIELDS, ("logits", "pooled"))
    sizes = {
        "block.expand.weight": [5, 8, 1, 1],
        "block.expand.bias": [5],
        "block.project.weight": [8, 5, 1, 1],
    }
    pruned = Module().slim(config, sizes=sizes)
    assert Module().parameters(pruned)["block"] == 8 * 5 + 5 + 5 * 8 + 8
    assert Module().macs(pruned) < Module().macs(config)
    module = Module().build(pruned).eval()
    expand = module.get_submodule("block.expand")
    assert isinstance(expand, nn.Conv2d)
    assert (expand.in_channels, expand.out_channels) == (8, 5)
    for weight in module.parameters():
        nn.init.normal_(weight)
    Module().save(module, pruned, tmp_path)
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_module(tmp_path)(image=image)["logits"], module(image=image)["logits"])


def test_the_generator_keeps_its_state_while_a_module_is_described() -> None:
    before = torch.random.get_rng_state()
    config_of(NET_FIELDS, ("logits", "pooled"), arguments={"width": 6})
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        ("return 3", "returns int, not a torch.nn.Module"),
        ("return torch.jit.script(nn.Linear(1, 1))", "TorchScript"),
        ("return nn.Linear(5, 1)", r"`forward` failed with image \[2, 3, 16, 16\]"),
        ("return nn.Bilinear(3, 3, 3)", "`forward` failed"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_is_no_module_or_does_not_take_the_inputs_is_refused(
    build: str, expected: str
) -> None:
    code = f"import torch\nfrom torch import nn\n\n\ndef build():\n    {build}\n"
    fields = {**NET_FIELDS, "code": {"net.py": code}}
    with pytest.raises(ModelError, match=expected):
        config_of(fields)


def test_a_forward_that_needs_values_is_run_on_the_cpu() -> None:
    code = (
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.head = nn.Linear(3, 2)\n"
        "    def forward(self, x):\n        assert float(x.sum()) > 0\n"
        "        return self.head(x)\n"
    )
    inputs = [{"name": "x", "shape": ["batch", 3]}]
    config = config_of({"python": "net.py:Net", "code": {"net.py": code}, "inputs": inputs})
    assert list(config.output_paths) == ["logits"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"inputs": [{"name": "x", "shape": [2, 3]}]}, "name it `batch`"),
        ({"inputs": [{"name": "x", "shape": ["batch"], "below": 3}]}, "`below` bounds integers"),
        (
            {"inputs": [{"name": "x", "shape": ["batch", 1, 28, "batch"]}]},
            "the name of the first dimension alone",
        ),
        (
            {
                "inputs": [
                    {"name": "x", "shape": ["batch", 3, 8192, "width"], "example": {"width": 9999}}
                ]
            },
            "one sample has 0.983 GB",
        ),
        ({"timm": "resnet18"}, "expected one of python, timm, torchvision"),
    ],
    ids=["batch", "below", "two batches", "too large to try", "builders"],
)
def test_wrong_fields_are_named(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        ModuleConfig.model_validate_json(json.dumps(NET_FIELDS | fields))
