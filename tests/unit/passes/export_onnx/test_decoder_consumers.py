"""Exported decoders in other programs: plain ONNX Runtime, and onnxruntime-genai."""

import json

import numpy as np
import onnxruntime
import onnxruntime_genai
import pytest
import torch

from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from tests.support.decoders import FAMILY, FIELDS, export_decoder, pack_decoder, save_decoder

PROMPT = [5, 6, 7]


def generate_with_torch(folder, count):
    ids = load_module(folder).generate(
        torch.tensor([PROMPT]), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return ids[0].tolist()


def generate_with_genai(folder, count):
    model = onnxruntime_genai.Model(str(folder))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=32, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.array(PROMPT, dtype=np.int32))
    for _ in range(count):
        generator.generate_next_token()
    return generator.get_sequence(0).tolist()


def test_plain_onnxruntime_generates_what_torch_does(tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-qwen2")
    export_decoder(parent, tmp_path / "out")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", options)
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["decoder"]
    inputs, outputs = config["inputs"], config["outputs"]
    parts = [
        (str(layer), part)
        for layer in range(config["num_hidden_layers"])
        for part in ("key", "value")
    ]
    past = {
        inputs[f"past_{part}_names"].replace("%d", layer): outputs[f"present_{part}_names"].replace(
            "%d", layer
        )
        for layer, part in parts
    }
    shape = (1, config["num_key_value_heads"], 0, config["head_size"])
    cache = {name: np.zeros(shape, np.float32) for name in past}
    names = [value.name for value in session.get_outputs()]
    ids = list(PROMPT)
    for _ in range(6):
        cached = next(iter(cache.values())).shape[2]
        feeds = {
            "input_ids": np.array([ids[cached:]]),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            **cache,
        }
        results = dict(zip(names, session.run(None, feeds), strict=True))
        cache = {name: results[present] for name, present in past.items()}
        ids.append(int(results[outputs["logits"]][0, -1].argmax()))
    assert ids == generate_with_torch(parent.model, 6)


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_genai_generates_what_torch_does(preset, tmp_path):
    parent = save_decoder(tmp_path / "parent", preset)
    export_decoder(parent, tmp_path / "out")
    assert generate_with_genai(tmp_path / "out", 8) == generate_with_torch(parent.model, 8)


@pytest.mark.parametrize(
    "decoder", [{"int8_embeddings": True}, {"int8_kv_cache": {"data": "text"}}], ids=str
)
def test_genai_runs_packed_weights_and_an_8_bit_cache(decoder, tmp_path):
    parent = pack_decoder(save_decoder(tmp_path / "parent", "tiny-llama"), tmp_path)
    export_decoder(parent, tmp_path / "graph", {**FIELDS, "decoder": decoder})
    graph, ids = OnnxDecoder(tmp_path / "graph", 1, capacity=16), list(PROMPT)
    for start in (0, *range(3, 10)):
        ids.append(int(graph.forward(np.array([ids[start:]]))[0, -1].argmax()))
    assert generate_with_genai(tmp_path / "graph", 8) == ids
