"""The ``lora`` pass: adapters that PEFT loads, their base, and targets that match nothing."""

from __future__ import annotations

import json

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.engine.contract import PlanContext
from compressor.errors import ModelError, RequirementError
from compressor.models.architecture import Architecture
from compressor.models.facts import facts_of, planned_facts
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.runtimes.formats import recognize
from passes.common import training
from passes.lora.config import LoraConfig
from passes.lora.step import Lora
from tests.support.adapters import DATA, lora_context, save_base, train_lora
from tests.support.training import Killed

TARGETS = {"target_modules": ("q_proj", "v_proj"), "lora_alpha": 32.0}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return train_lora(base, tmp_path_factory.mktemp("trained"), **TARGETS)


def logits_of(session):
    batch = DATA.batch(np.arange(2))
    return session.run({"input_ids": batch["input_ids"]})["logits"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # read by PEFT
def test_users_of_peft_load_the_adapter_and_get_the_measured_logits(base, adapter):
    module = AutoModelForCausalLM.from_pretrained(base.model, dtype="auto")
    theirs = peft.PeftModel.from_pretrained(module, adapter).eval()
    ids = torch.from_numpy(DATA.batch(np.arange(2))["input_ids"])
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits.numpy()
    ours = logits_of(recognize(adapter).open_session(1))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert np.abs(ours - logits_of(recognize(base.model).open_session(1))).max() > 0.01


def test_the_cost_is_that_of_base_and_adapter_together(base, adapter):
    cost = recognize(adapter).format.cost(adapter, {})
    own = sum(tensor.numel() for tensor in load_file(adapter / WEIGHTS).values())
    assert cost.parameters == facts_of(base.model).parameters + own
    assert cost.size_bytes > facts_of(base.model).size_bytes


def test_a_killed_training_resumes_and_ends_in_the_same_bytes(base, adapter, tmp_path, monkeypatch):
    save = training.save_checkpoint

    def save_and_die(*arguments):
        save(*arguments)
        raise Killed

    fields = {**TARGETS, "validation": None}
    fields["training"] = {
        "steps": 12,
        "batch_size": 4,
        "learning_rate": 0.05,
        "checkpoint_every": 5,
    }
    monkeypatch.setattr(training, "save_checkpoint", save_and_die)
    with pytest.raises(Killed):
        train_lora(base, tmp_path, **fields)
    checkpoint = tmp_path / "work" / training.CHECKPOINT
    assert checkpoint.stat().st_size < facts_of(base.model).size_bytes  # the base is not in it
    monkeypatch.undo()
    (tmp_path / "adapter").rmdir()
    resumed = train_lora(base, tmp_path, **fields)
    assert (resumed / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()


def test_the_base_of_a_measured_adapter_must_be_unchanged(adapter, tmp_path):
    other = save_base(tmp_path, seed=1)
    record = json.loads((adapter / "base.json").read_text())
    copy = tmp_path / "adapter"
    copy.mkdir()
    for name in ("adapter_config.json", WEIGHTS):
        (copy / name).write_bytes((adapter / name).read_bytes())
    (copy / "base.json").write_text(json.dumps({**record, "name": str(other.model)}))
    with pytest.raises(ModelError, match="is not the base of the adapter"):
        recognize(copy).open_session(1)


@pytest.mark.parametrize("change", ["missing", "unexpected", "rank"])
def test_tensors_that_do_not_fit_are_named(base, adapter, tmp_path, change):
    tensors = load_file(adapter / WEIGHTS)
    name = min(tensors)
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors[name := "base_model.model.nowhere.lora_A.weight"] = torch.zeros(2)
    else:
        tensors[name] = tensors[name][:4].contiguous()
    for file in ("adapter_config.json", "base.json"):
        (tmp_path / file).write_bytes((adapter / file).read_bytes())
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=name):
        recognize(tmp_path).open_session(1)


def test_an_adapter_without_tensors_is_refused(adapter, tmp_path):
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    save_file({}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match="has no tensors: the adapter changes nothing"):
        recognize(tmp_path).format.check(tmp_path)


def test_ia3_is_trained_with_the_soft_labels_of_a_teacher(base, tmp_path):
    config = LoraConfig.model_validate(
        {
            "peft_type": "IA3",
            "teacher": "large",
            "soft_weight": 1.0,
            "validation": None,
            "training": {"steps": 2, "batch_size": 2},
        }
    )
    teacher = save_base(tmp_path / "teacher", seed=1)
    out = tmp_path / "out"
    out.mkdir()
    context = lora_context(tmp_path, {"teacher": teacher})
    summary = Lora().run(config, base, out, context).summary
    assert "soft_label" in summary["history"][0]
    names = {name.rpartition(".")[2] for name in load_file(out / WEIGHTS)}
    assert names == {"ia3_l"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_proj", "query"), "'query' matches no linear layer(.|\n)*q_proj, k_proj"),
        (r"encoder\..*", "matches no linear layer"),
        (("embed_tokens",), "'embed_tokens' matches no linear layer"),
    ],
)
def test_a_target_that_matches_nothing_is_a_plan_error(base, targets, message):
    config = LoraConfig(target_modules=targets, validation=None)
    with pytest.raises(RequirementError, match=message):
        Lora().estimate(config, facts_of(base.model), PlanContext({}))


def test_grouped_convolutions_whose_groups_do_not_divide_the_rank_are_a_plan_error():
    family = AutoGLMPhone()
    facts = planned_facts(Architecture(family, family.presets["tiny"]))
    config = LoraConfig(target_modules=("expand", "filter"), r=7, validation=None)
    with pytest.raises(RequirementError, match=r"'filter' matches convolutions of .* groups"):
        Lora().estimate(config, facts, PlanContext({}))
    Lora().estimate(LoraConfig(target_modules=("expand",), validation=None), facts, PlanContext({}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "`use_dora` is not supported"),
        ({"peft_type": "IA3", "r": 4}, "`r` has no effect"),
        ({"soft_weight": 0.5}, "`soft_weight` has no effect without `teacher`"),
        ({"target_modules": ()}, "`target_modules` is empty"),
        ({"feedforward_modules": ("up_proj",)}, "requires `peft_type: IA3`"),
    ],
)
def test_fields_without_effect_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**fields)
