"""Answers under adapters: each conversation has its own, and no cache is used under another."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from compressor.commands.models import app
from compressor.errors import DamagedArtifactError, UsageError
from compressor.generation.adapters import named_adapters, with_adapter
from compressor.generation.conversation import Conversation, open_chat_model
from compressor.generation.generate import generate, model_at
from compressor.generation.prompt import Prompt
from compressor.generation.requests import SamplingOptions
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.delta.apply import apply_package
from compressor.runtimes.formats import recognize
from tests.support.chat_models import answer_to, begin, opened, prompt_of
from tests.support.decoders import save_decoder
from tests.support.deltas import application, make_package
from tests.support.processors import write_processor
from tests.support.slots import export_with_slots, write_random_adapter

PROMPT = [7, 20, 31, 9, 14, 40, 22, 17]
NAMES = (None, "one", "second")


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    parent = save_decoder(folder / "float", "tiny-llama")
    export_with_slots(parent, folder / "onnx", "q_proj", "v_proj")
    write_processor(folder / "onnx")
    modules = load_module(parent.model).named_modules()
    shapes = {n: tuple(m.weight.shape) for n, m in modules if n.endswith(("q_proj", "v_proj"))}
    for name in NAMES[1:]:
        write_random_adapter(parent.model, folder / name, shapes)
    return folder


def adapters_of(bed):
    return named_adapters(str(bed / name) for name in NAMES[1:])


def test_answers_of_several_adapters_at_once_are_those_of_each_alone(bed):
    expected = {}
    for name in NAMES:
        with opened(bed / "onnx", rows=1, adapters=adapters_of(bed)) as model:
            expected[name] = answer_to(model, with_adapter(prompt_of(PROMPT), name)).text
    assert len(set(expected.values())) == 3
    with opened(bed / "onnx", adapters=adapters_of(bed)) as model:
        answers = {name: begin(model, with_adapter(prompt_of(PROMPT), name)) for name in NAMES}
        assert {name: answer.wait().text for name, answer in answers.items()} == expected


def test_a_cache_of_another_adapter_is_not_used(bed):
    with opened(bed / "onnx", rows=1, adapters=adapters_of(bed)) as model:
        cached = []
        for name in (None, "one", "one", "second", None):
            answer = answer_to(model, with_adapter(prompt_of(PROMPT), name), max_tokens=1)
            cached.append(answer.finish.usage.cached_tokens)
    assert cached == [0, 0, len(PROMPT) - 1, 0, 0]


def test_a_conversation_changes_its_adapter(bed):
    model = open_chat_model(recognize(bed / "onnx"), threads=1, adapters=adapters_of(bed))
    try:
        conversation = Conversation(model, SamplingOptions(8))
        answers = {}
        for name in ("one", None, "second"):
            conversation.clear()
            conversation.use_adapter(name)
            answers[name] = conversation.ask("w20 w7", lambda _: None).text
        with pytest.raises(UsageError, match="no adapter 'third'"):
            conversation.use_adapter("third")
    finally:
        model.close()
    for name, text in answers.items():
        prompt = Prompt("w20 w7", adapter=None if name is None else bed / name)
        sampling = SamplingOptions(8)
        model = model_at(bed / "onnx")
        alone = generate(model, prompt, sampling, threads=1, on_text=lambda _: None)
        assert alone.text == text


def test_the_command_takes_an_adapter(bed):
    arguments = ["generate", str(bed / "onnx"), "--prompt", "w20 w7", "--max-tokens", "8"]
    plain = CliRunner().invoke(app, arguments)
    adapted = CliRunner().invoke(app, [*arguments, "--adapter", f"x={bed / 'one'}"])
    assert (plain.exit_code, adapted.exit_code) == (0, 0)
    assert plain.stdout != adapted.stdout


def test_names_of_adapters_are_checked(bed):
    with pytest.raises(UsageError, match="two adapters have the name 'one'"):
        named_adapters([str(bed / "one"), f"one={bed / 'second'}"])
    with pytest.raises(UsageError, match="has an empty name"):
        named_adapters([f"={bed / 'one'}"])


def test_what_is_no_adapter_is_refused(bed, tmp_path):
    shutil.copy(bed / "one" / "adapter_model.safetensors", tmp_path)
    for folder in (bed / "float", tmp_path):
        with pytest.raises(UsageError, match=r"is no adapter: it has no adapter_config\.json"):
            named_adapters([str(folder)])
    result = CliRunner().invoke(app, ["generate", str(bed / "one"), "--prompt", "w7"])
    assert result.exception.what.endswith("generates text beside its base alone")


def test_an_applied_adapter_with_a_flipped_byte_is_refused(bed, tmp_path):
    work, out = tmp_path / "delta", tmp_path / "out"
    shutil.copytree(bed / "one", tmp_path / "model")
    package, _ = make_package(tmp_path / "model", bed / "float", work)
    apply_package(application(package, bed / "float", out))
    assert named_adapters([f"a={out}"]) == {"a": out}
    weights = out / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DamagedArtifactError, match="is not what was applied"):
        named_adapters([f"a={out}"])


def test_a_prompt_differs_in_its_first_key_alone():
    keys = with_adapter(prompt_of(PROMPT), "one").prefix_keys_T
    assert keys[0] != PROMPT[0]
    assert np.array_equal(keys[1:], PROMPT[1:])
