"""Text from every kind of artifact, and what stands against it."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compressor.errors import DataError, UsageError
from compressor.generation.generate import Prompt, Sampling, generate, model_at
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes import memory
from compressor.runtimes.onnxruntime.decoder import fast_prompts as onnx_prompts
from tests.support.decoders import export_decoder, pack_decoder, save_decoder
from tests.support.processors import write_processor
from tests.support.tiny_files import tiny_onnx

GREEDY = Sampling(max_tokens=12, temperature=0.0, top_p=1.0, seed=0)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """A checkpoint with a tokenizer of words, packed, and both as graphs."""
    folder = tmp_path_factory.mktemp("talk")
    parent = save_decoder(folder / "torch", "tiny-llama")
    write_processor(folder / "torch")
    small = pack_decoder(parent, folder / "packed")
    export_decoder(parent, folder / "onnx")
    export_decoder(
        small, folder / "int4", {"parity": {"data": "text"}, "decoder": {"accuracy_level": 1}}
    )
    export_decoder(
        small, folder / "integers", {"parity": {"data": "text"}, "decoder": {"accuracy_level": 4}}
    )
    return {"torch": folder / "torch", "packed": small.model} | {
        n: folder / n for n in ("onnx", "int4", "integers")
    }


def said(folder, sampling=GREEDY, *, raw=True, prompt="w10 w11 w12", **more):
    pieces = []
    found = generate(
        model_at(folder),
        Prompt(prompt, raw=raw),
        sampling,
        threads=1,
        on_text=pieces.append,
        **more,
    )
    assert "".join(pieces) == found.text
    return found


def test_greedy_text_is_what_transformers_generates(bed):
    found = said(bed["torch"])
    theirs = load_module(bed["torch"]).generate(
        torch.tensor([[10, 11, 12]]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    words = " ".join(f"w{one}" for one in theirs[0, 3:].tolist() if one > 3 and one < 500)
    assert found.text.split() == words.split()
    assert (found.prompt_tokens, found.tokens, found.finished) == (3, 12, False)
    assert found.prefill_tokens_per_second > 0
    assert found.decode_tokens_per_second is not None


@pytest.mark.parametrize(("torch_kind", "graph"), [("torch", "onnx"), ("packed", "int4")])
def test_a_graph_says_what_torch_says(torch_kind, graph, bed):
    assert model_at(bed[torch_kind]).format.name == torch_kind
    assert said(bed[torch_kind]).text == said(bed[graph]).text


def test_fast_prompts_are_asked_of_graphs_alone(bed, monkeypatch):
    asked, opened = [], onnx_prompts.temporary_prompt_graph
    monkeypatch.setattr(
        onnx_prompts, "temporary_prompt_graph", lambda *given: asked.append(given) or opened(*given)
    )
    prompt = " ".join(f"w{10 + one}" for one in range(20))
    assert said(bed["integers"], prompt=prompt).tokens == 12
    assert not asked
    assert said(bed["integers"], prompt=prompt, fast_prompts=True).tokens == 12
    assert len(asked) == 1
    for kind in ("torch", "packed"):
        with pytest.raises(UsageError, match="holds no ONNX graph") as caught:
            said(bed[kind], fast_prompts=True)
        assert "--fast-prompts" in caught.value.remedy
    with pytest.raises(UsageError, match="has no weights that are multiplied as packed integers"):
        said(bed["onnx"], fast_prompts=True)


@pytest.mark.parametrize(("name", "code"), [("integers", 0), ("torch", 2)])
def test_the_command_line_passes_it_on(name, code, bed):
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
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("error: " in done.stderr) == bool(code)
    assert code or json.loads(done.stdout)["prompt_tokens"] == 2


def test_the_chat_template_is_used_unless_the_prompt_is_raw(bed):
    assert said(bed["onnx"], raw=False).prompt_tokens == 3 + 3  # <user> … <end> <assistant>
    assert said(bed["onnx"], raw=True).prompt_tokens == 3


def test_choices_follow_the_seed(bed):
    hot = [Sampling(max_tokens=12, temperature=3.0, top_p=1.0, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (said(bed["onnx"], one).text for one in hot)
    assert first == again != other
    certain = Sampling(max_tokens=12, temperature=3.0, top_p=1e-9, seed=1)
    assert said(bed["onnx"], certain).text == said(bed["onnx"]).text


def test_an_end_ends_it(bed, tmp_path):
    first = said(bed["onnx"]).text.split()
    ends = [int(word[1:]) for word in first][3]
    for file in bed["onnx"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [ends]}))
    found = said(tmp_path)
    assert found.finished
    assert found.text.split() == first[: first.index(f"w{ends}")]


def test_what_does_not_generate_is_told(bed, tmp_path):
    with pytest.raises(
        UsageError, match="prompt and answer have 515 tokens; the model's context has 512"
    ):
        said(bed["onnx"], Sampling(512, 0.0, 1.0, 0))
    with pytest.raises(UsageError, match="is not a folder"):
        said(tmp_path / "nothing")
    with pytest.raises(UsageError, match="the prompt is empty"):
        said(bed["onnx"], prompt="")
    bare = save_decoder(tmp_path / "bare", "tiny-llama").model
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        said(bare)
    write_processor(tmp_path / "encoder")
    (tmp_path / "encoder" / "model.onnx").write_bytes(tiny_onnx())
    with pytest.raises(UsageError, match="holds no model that generates text"):
        said(tmp_path / "encoder")


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_text_that_does_not_fit_into_memory_is_told_before_it_is_tried(bed, kind, monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    # 3 layers of 2 key heads of 16 values, twice, in float32: 768 bytes a token.
    assert said(bed[kind], Sampling(100, 0.0, 1.0, 0)).tokens == 100
    with pytest.raises(UsageError, match=r"1 sequence of 153 tokens: 0\.0 GB needed, 0\.0 GB free"):
        said(bed[kind], Sampling(150, 0.0, 1.0, 0))


def test_the_share_of_words_is_never_empty(bed):
    found = said(bed["torch"], Sampling(max_tokens=3, temperature=0.5, top_p=0.01, seed=2))
    assert found.tokens == 3
    assert np.isfinite(found.prefill_tokens_per_second)
