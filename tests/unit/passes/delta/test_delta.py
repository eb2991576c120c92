"""The pass ``delta``: encodings, patches between models, and (IA)³ in packed scales."""

import json
import shutil
import subprocess
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch

from compressor.engine.contract import PlanContext
from compressor.errors import ModelError, RequirementError, UsageError
from compressor.models.adapters.base import BASE
from compressor.models.checkpoint.loading import load_module
from compressor.models.checkpoint.weight_files import read_weight_files
from compressor.models.facts import ModelFacts
from compressor.models.quantized.packed_checkpoint import read_packed_layers
from compressor.runtimes.delta.apply import apply_package
from compressor.runtimes.delta.identity import open_base
from compressor.runtimes.delta.package import read_package
from compressor.runtimes.delta.scales import merge_into_scales, merge_targets
from passes.delta.config import DeltaConfig
from passes.delta.step import Delta
from tests.support.cli import cli
from tests.support.deltas import (
    application,
    float_base,
    ia3_adapter,
    lora_adapter,
    make_package,
    packed_base,
    written_adapter,
)

SHAPES = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.1.self_attn.v_proj": (32, 64)}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a packed base, and adapters of PEFT on it."""
    home = tmp_path_factory.mktemp("deltas")
    base = packed_base(home / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora_adapter(home / "lora" / "model", base)
        ia3_adapter(home / "ia3" / "model", base)
    return home


def base_of(home):
    return home / "base" / "out"


def test_auto_takes_the_smallest_encoding_within_the_error(home, tmp_path):
    adapter, base = home / "lora" / "model", base_of(home)
    _, smallest = make_package(adapter, base, tmp_path / "a")
    tried = smallest.summary["encodings"]
    assert smallest.summary["encoding"] == "int8"
    assert tried["int8"]["bytes"] < tried["float16"]["bytes"] < tried["exact"]["bytes"]
    assert 1e-3 < smallest.summary["loss"]["relative_error"] < 0.02
    _, strict = make_package(adapter, base, tmp_path / "b", max_error=1e-3)
    assert strict.summary["encoding"] == "float16"
    assert "int8" in strict.summary["refused_encodings"]
    _, exact = make_package(adapter, base, tmp_path / "c", max_error=1e-6)
    assert exact.summary["encoding"] == "exact"
    with pytest.raises(RequirementError, match=r"int8: relative error 0\.0"):
        make_package(adapter, base, tmp_path / "d", max_error=1e-3, encoding="int8")


def test_peft_loads_what_is_applied_and_exact_keeps_the_files(home, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for encoding in ("int8", "exact"):
        file, _ = make_package(
            home / "lora" / "model", base_of(home), tmp_path / encoding, encoding=encoding
        )
        apply_package(application(file, base_of(home), tmp_path / encoding / "out"))
    kept = tmp_path / "exact" / "out"
    for name in ("adapter_model.safetensors", "adapter_config.json", BASE):
        assert (kept / name).read_bytes() == (home / "lora" / "model" / name).read_bytes()
    logits = []
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for adapter in (kept, tmp_path / "int8" / "out", None):
            model = AutoModelForCausalLM.from_pretrained(home / "base" / "float")
            model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
            logits.append(model.eval()(torch.arange(5, 25)[None]).logits)
    exact, rounded, without = logits
    assert (rounded - exact).abs().max() < 0.05 * (without - exact).abs().max()


def test_ia3_is_merged_into_packed_scales(home, tmp_path):
    file, output = make_package(home / "ia3" / "model", base_of(home), tmp_path)
    update, _ = apply_package(application(file, base_of(home), tmp_path / "out", merge=True))
    assert update.digest == output.summary["merged"] == open_base(tmp_path / "out").digest
    before, after = (read_packed_layers(folder) for folder in (base_of(home), tmp_path / "out"))
    factors = safetensors.torch.load_file(home / "ia3" / "model" / "adapter_model.safetensors")
    changed = 0
    for name, layer in before.items():
        assert torch.equal(after[name].integers_OI, layer.integers_OI)
        assert torch.equal(after[name].zeros_OG, layer.zeros_OG)
        source = name.replace("up_proj", "down_proj")
        factor = factors.get(f"base_model.model.{source}.ia3_l")
        if factor is None or name.endswith("down_proj"):
            assert torch.equal(after[name].scales_OG, layer.scales_OG), name
            continue
        expected = layer.scales_OG.float() * factor.flatten()[:, None]
        torch.testing.assert_close(after[name].scales_OG.float(), expected, rtol=2e-3, atol=0)
        changed += 1
    assert changed == 3 * 3


def test_a_merged_model_computes_what_peft_computes(home, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    file, _ = make_package(home / "ia3" / "model", base_of(home), tmp_path)
    apply_package(application(file, base_of(home), tmp_path / "out", merge=True))
    tokens = torch.arange(5, 25)[None]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        unpacked = AutoModelForCausalLM.from_pretrained(home / "base" / "float")
        unpacked.load_state_dict(load_module(base_of(home), "cpu").state_dict())
        plain = unpacked.eval()(tokens).logits
        beside = PeftModel.from_pretrained(unpacked, home / "ia3" / "model").eval()(tokens).logits
        merged = load_module(tmp_path / "out", "cpu").eval()(input_ids=tokens)
    merged = merged if torch.is_tensor(merged) else merged["logits"]
    assert (merged - beside).abs().max() < 0.02 * (plain - beside).abs().max()


def test_what_cannot_be_merged_is_refused(home, tmp_path):
    lora, _ = make_package(home / "lora" / "model", base_of(home), tmp_path / "lora")
    with pytest.raises(UsageError, match=r"31\.81 without the adapter, 24\.71 with it"):
        apply_package(application(lora, base_of(home), tmp_path / "out", merge=True))
    files = open_base(base_of(home)).files
    (tmp_path / "merged").mkdir()
    odd = tmp_path / "odd"
    odd.mkdir()
    factors = {
        "base_model.model.model.layers.0.self_attn.k_proj.ia3_l": torch.ones(3, 1),
        "base_model.model.model.layers.0.self_attn.o_proj.ia3_l": torch.ones(1, 64),
        "base_model.model.model.layers.9.self_attn.k_proj.ia3_l": torch.ones(32, 1),
    }
    safetensors.torch.save_file(factors, odd / "adapter_model.safetensors")
    with pytest.raises(ModelError) as error:
        merge_into_scales(odd, files, tmp_path / "merged")
    assert error.value.what.count("\n") == 3
    assert not any((tmp_path / "merged").iterdir())


@pytest.mark.parametrize(
    ("layer", "change"),
    [("gate_proj", "missing"), ("inner_norm.weight", "added")],
    ids=["no gate", "a norm before down_proj"],
)
def test_factors_of_inputs_are_merged_into_gated_products_alone(home, layer, change):
    """relu²(f·x) is not f·relu²(x), and a norm removes f: `up_proj` cannot hold the factor."""
    mlp = "model.layers.0.mlp"
    stored = dict(read_weight_files(base_of(home)).checked().tensors)
    factors = np.ones((1, stored[f"{mlp}.up_proj.scales"].entry.shape[1]), np.float32)
    assert merge_targets({f"{mlp}.down_proj": factors}, stored)
    if change == "missing":
        stored = {name: value for name, value in stored.items() if f"{mlp}.{layer}" not in name}
    else:
        stored[f"{mlp}.{layer}"] = next(iter(stored.values()))
    with pytest.raises(ModelError, match="gated by gate_proj alone"):
        merge_targets({f"{mlp}.down_proj": factors}, stored)


def test_a_patch_between_two_models_is_small_and_exact(tmp_path):
    old = float_base(tmp_path / "old" / "model")
    shutil.copytree(old, tmp_path / "new" / "model")
    new = tmp_path / "new" / "model"
    tensors = safetensors.torch.load_file(new / "model.safetensors")
    tensors["model.norm.weight"] += 1
    safetensors.torch.save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
    file, output = make_package(new, old, tmp_path / "work", "torch")
    whole = output.summary["model_bytes"]
    assert file.stat().st_size < 0.02 * whole
    unchanged = {each.name for each in read_package(file).manifest.files if not each.blocks}
    assert {"config.json", "tokenizer.json"} <= unchanged
    apply_package(application(file, old, tmp_path / "out"))
    for name in open_base(new).files:
        assert (tmp_path / "out" / name).read_bytes() == (new / name).read_bytes()


def test_what_does_not_fit_is_refused(home, tmp_path):
    old = float_base(tmp_path / "old" / "model")
    with pytest.raises(RequirementError, match="rounds the factors of an adapter"):
        make_package(old, old, tmp_path / "a", "torch", encoding="int8")
    with pytest.raises(RequirementError, match="the format 'packed', and the new model of 'torch'"):
        make_package(old, base_of(home), tmp_path / "b", "torch")
    with pytest.raises(RequirementError, match="the adapter was trained on"):
        make_package(home / "lora" / "model", old, tmp_path / "c")
    with pytest.raises(RequirementError, match=r"has the digest [0-9a-f]{64}; abababababab…"):
        make_package(home / "lora" / "model", base_of(home), tmp_path / "d", base_digest="ab" * 32)
    with pytest.raises(RequirementError, match=r"`expires: 2020-01-01T00:00:00Z` is over"):
        make_package(
            home / "lora" / "model", base_of(home), tmp_path / "e", expires="2020-01-01T00:00:00Z"
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"expires": "tomorrow"},
        {"base": "source", "base_path": "x"},
        {"base_digest": "ab" * 32},
        {"counter": 0},
        {"series": "../x"},
    ],
)
def test_fields_that_do_not_fit_are_refused(fields):
    with pytest.raises(ValueError):
        DeltaConfig.model_validate(fields)


def test_from_the_command_line_pack_sign_apply_and_undo(tmp_path):
    base = float_base(tmp_path / "base")
    written_adapter(tmp_path / "adapter", base, SHAPES)
    values = (f"base_path={base}", "counter=4", "series=icons")
    fields = [word for value in values for word in ("--set", value)]
    packed = cli("pass", "delta", "adapter", *fields, "-o", "store", cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    (artifact,) = (tmp_path / "store").glob("delta-*")
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "key.pem"], check=True
    )
    subprocess.run(
        ["openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"],
        check=True,
        cwd=tmp_path,
    )
    inside = cli("sign", artifact / "model" / "update.aglmdelta", "--key", tmp_path / "key.pem")
    assert inside.returncode == 2
    signed = cli("sign", artifact, "--key", "key.pem", "--out", "icons.aglmdelta", cwd=tmp_path)
    assert signed.returncode == 0, signed.stderr
    shown = json.loads(cli("show", "icons.aglmdelta", "--json", cwd=tmp_path).stdout)
    assert shown["format"] == "delta"
    assert ["counter", "4"] in shown["details"]
    command = ("apply", "icons.aglmdelta", "base", "--out", "icons", "--key", "key.pub", "--json")
    applied = cli(*command, cwd=tmp_path)
    assert applied.returncode == 0, applied.stderr
    assert json.loads(applied.stdout)["counter"] == 4
    assert cli("verify", "store", cwd=tmp_path).returncode == 0
    undone = cli("apply", "--undo", "--out", "icons", cwd=tmp_path)
    assert "nothing is in use" in undone.stdout
    content = bytearray((tmp_path / "icons.aglmdelta").read_bytes())
    content[-100] ^= 1
    (tmp_path / "icons.aglmdelta").write_bytes(content)
    assert cli(*command, cwd=tmp_path).returncode == 4
    assert cli("apply", "icons.aglmdelta", "--out", "x", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("formats", "fields", "problem"),
    [
        ({"parent": "torch"}, {}, "is not named"),
        ({"parent": "torch", "base": "packed"}, {"base": "x"}, "'packed', and the new model of"),
        ({"parent": "onnx", "base": "onnx"}, {"base": "x", "encoding": "int8"}, "this is a patch"),
        ({"parent": "adapter"}, {"base_path": "missing"}, "does not exist"),
        ({"parent": "adapter", "base": "torch"}, {"base": "x", "encoding": "int8"}, None),
        ({"parent": "adapter", "base": "adapter"}, {"base": "x", "encoding": "exact"}, None),
    ],
)
def test_the_plan_refuses_what_a_run_would(formats, fields, problem):
    config = DeltaConfig.model_validate(fields)
    context = PlanContext({"parent": ModelFacts()}, formats=formats)
    if problem is None:
        Delta().estimate(config, ModelFacts(), context)
        return
    with pytest.raises(RequirementError, match=problem):
        Delta().estimate(config, ModelFacts(), context)


def test_the_plan_compares_the_digest_of_a_base_that_exists(home):
    fields = {"base_path": str(base_of(home)), "base_digest": "0" * 64}
    context = PlanContext({"parent": ModelFacts()}, formats={"parent": "adapter"})
    with pytest.raises(RequirementError, match="has the digest"):
        Delta().estimate(DeltaConfig.model_validate(fields), ModelFacts(), context)
    fields["base_digest"] = open_base(base_of(home)).digest
    Delta().estimate(DeltaConfig.model_validate(fields), ModelFacts(), context)
