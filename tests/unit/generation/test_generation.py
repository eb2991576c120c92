"""Tests of text generation from artifacts of every format, and of its errors."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compressor.errors import DataError, UsageError
from compressor.generation.generate import generate, model_at
from compressor.generation.prompt import Prompt
from compressor.generation.requests import SamplingOptions
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes import memory
from compressor.runtimes.onnxruntime.decoder import fast_prompts as onnx_prompts
from tests.support.decoders import export_decoder, pack_decoder, save_decoder
from tests.support.processors import write_processor
from tests.support.tiny_files import tiny_onnx

GREEDY = SamplingOptions(max_tokens=12, temperature=0.0, top_p=1.0, seed=0)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """Save a checkpoint with a word tokenizer, quantize it, and export both."""
    folder = tmp_path_factory.mktemp("talk")
    parent = save_decoder(folder / "torch", "tiny-llama")
    write_processor(folder / "torch")
    packed = pack_decoder(parent, folder / "packed")
    export_decoder(parent, folder / "onnx")
    export_decoder(
        packed, folder / "int4", {"parity": {"data": "text"}, "decoder": {"accuracy_level": 1}}
    )
    export_decoder(
        packed, folder / "integers", {"parity": {"data": "text"}, "decoder": {"accuracy_level": 4}}
    )
    return {"torch": folder / "torch", "packed": packed.model} | {
        name: folder / name for name in ("onnx", "int4", "integers")
    }


def generate_text(folder, sampling=GREEDY, *, raw=True, prompt="w10 w11 w12", **options):
    pieces = []
    result = generate(
        model_at(folder),
        Prompt(prompt, raw=raw),
        sampling,
        threads=1,
        on_text=pieces.append,
        **options,
    )
    assert "".join(pieces) == result.text
    return result


def test_greedy_text_is_what_transformers_generates(bed):
    result = generate_text(bed["torch"])
    reference = load_module(bed["torch"]).generate(
        torch.tensor([[10, 11, 12]]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    words = " ".join(f"w{token}" for token in reference[0, 3:].tolist() if 3 < token < 500)
    assert result.text.split() == words.split()
    assert (result.prompt_tokens, result.tokens, result.finished) == (3, 12, False)
    assert result.prefill_tokens_per_second > 0
    assert result.decode_tokens_per_second is not None


@pytest.mark.parametrize(("torch_format", "graph"), [("torch", "onnx"), ("packed", "int4")])
def test_a_graph_generates_the_text_of_torch(torch_format, graph, bed):
    assert model_at(bed[torch_format]).format.name == torch_format
    assert generate_text(bed[torch_format]).text == generate_text(bed[graph]).text


def test_fast_prompts_apply_to_graphs_with_packed_weights_only(bed, monkeypatch):
    calls, original = [], onnx_prompts.temporary_prompt_graph
    monkeypatch.setattr(
        onnx_prompts, "temporary_prompt_graph", lambda *args: calls.append(args) or original(*args)
    )
    prompt = " ".join(f"w{10 + index}" for index in range(20))
    assert generate_text(bed["integers"], prompt=prompt).tokens == 12
    assert not calls
    assert generate_text(bed["integers"], prompt=prompt, fast_prompts=True).tokens == 12
    assert len(calls) == 1
    for name in ("torch", "packed"):
        with pytest.raises(UsageError, match="holds no ONNX graph") as caught:
            generate_text(bed[name], fast_prompts=True)
        assert "--fast-prompts" in caught.value.remedy
    with pytest.raises(UsageError, match="has no weights that are multiplied as packed integers"):
        generate_text(bed["onnx"], fast_prompts=True)


@pytest.mark.parametrize(("name", "code"), [("integers", 0), ("torch", 2)])
def test_the_command_line_passes_fast_prompts_on(name, code, bed):
    command = [
        sys.executable,
        "-m",
        "cli",
        "generate",
        bed[name],
        "--prompt",
        "w10 w11",
        "--raw",
        "--fast-prompts",
        "--json",
    ]
    process = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert process.returncode == code, process.stderr
    assert ("error: " in process.stderr) == bool(code)
    assert code or json.loads(process.stdout)["prompt_tokens"] == 2


def test_the_chat_template_is_used_unless_the_prompt_is_raw(bed):
    assert (
        generate_text(bed["onnx"], raw=False).prompt_tokens == 3 + 3
    )  # <user> … <end> <assistant>
    assert generate_text(bed["onnx"], raw=True).prompt_tokens == 3


def test_sampling_is_reproducible_for_a_seed(bed):
    hot = [
        SamplingOptions(max_tokens=12, temperature=3.0, top_p=1.0, seed=seed) for seed in (0, 0, 1)
    ]
    first, repeated, different = (generate_text(bed["onnx"], sampling).text for sampling in hot)
    assert first == repeated != different
    certain = SamplingOptions(max_tokens=12, temperature=3.0, top_p=1e-9, seed=1)
    assert generate_text(bed["onnx"], certain).text == generate_text(bed["onnx"]).text


def test_an_end_token_ends_the_answer(bed, tmp_path):
    first = generate_text(bed["onnx"]).text.split()
    end = [int(word[1:]) for word in first][3]
    for file in bed["onnx"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    result = generate_text(tmp_path)
    assert result.finished
    assert result.text.split() == first[: first.index(f"w{end}")]


def test_models_and_prompts_that_cannot_generate_are_errors(bed, tmp_path):
    with pytest.raises(
        UsageError, match="prompt and answer have 515 tokens; the model's context has 512"
    ):
        generate_text(bed["onnx"], SamplingOptions(512))
    with pytest.raises(UsageError, match="is not a folder"):
        generate_text(tmp_path / "nothing")
    with pytest.raises(UsageError, match="the prompt is empty"):
        generate_text(bed["onnx"], prompt="")
    bare = save_decoder(tmp_path / "bare", "tiny-llama").model
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        generate_text(bare)
    write_processor(tmp_path / "encoder")
    (tmp_path / "encoder" / "model.onnx").write_bytes(tiny_onnx())
    with pytest.raises(UsageError, match="holds no model that generates text"):
        generate_text(tmp_path / "encoder")


def test_a_prompt_with_tokens_beyond_the_embedding_is_an_error(bed, tmp_path):
    for name in ("torch", "packed", "onnx", "int4"):
        folder = tmp_path / name
        shutil.copytree(bed[name], folder)
        file = folder / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        tokenizer["model"]["vocab"]["beyond"] = 100_000
        file.write_text(json.dumps(tokenizer))
        with pytest.raises(DataError, match=r"no row for: 'beyond' \(100000\)") as caught:
            generate_text(folder, prompt="w10 beyond")
        assert "resize_token_embeddings" in str(caught.value)


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_a_text_that_does_not_fit_into_memory_is_an_error_before_generation(bed, name, monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    # 3 layers of 2 key heads of 16 values, twice, in float32: 768 bytes a token.
    assert generate_text(bed[name], SamplingOptions(100)).tokens == 100
    with pytest.raises(UsageError, match=r"1 sequence of 153 tokens: 0\.0 GB needed, 0\.0 GB free"):
        generate_text(bed[name], SamplingOptions(150))


def test_nucleus_sampling_keeps_at_least_one_token(bed):
    result = generate_text(
        bed["torch"], SamplingOptions(max_tokens=3, temperature=0.5, top_p=0.01, seed=2)
    )
    assert result.tokens == 3
    assert np.isfinite(result.prefill_tokens_per_second)
