"""Decoders of checkpoints in half precision, and graphs in float16."""

import numpy as np
import onnx
import onnxruntime_genai
import pytest

from compressor.config.record import with_former_names
from compressor.errors import UsageError
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from passes.export_onnx.config import ExportOnnxConfig
from tests.support.decoders import FIELDS, TOKENS, export_decoder, pack_decoder, save_decoder

HALF = {**FIELDS, "dtype": "float16"}


def float_types(folder):
    graph = onnx.load(folder / "model.onnx").graph
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    caches = {
        value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.output)
        if value.name.startswith(("past_key_values.", "present."))
    }
    return {tensor.data_type for tensor in graph.initializer} & floats, caches


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_checkpoint_is_exported_in_float32_with_its_weights(dtype, tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-llama", {"dtype": dtype})
    output, _ = export_decoder(parent, tmp_path / "out")
    assert all(way["max_abs"] < 1e-4 for way in output.summary["parity"])
    assert float_types(tmp_path / "out") == ({onnx.TensorProto.FLOAT},) * 2


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-gemma3", "tiny-glm4"])
def test_a_graph_in_float16_has_half_the_size_and_computes_what_torch_does(
    preset, target, tmp_path
):
    parent = save_decoder(tmp_path / "parent", preset, {"dtype": "bfloat16"})
    output, _ = export_decoder(parent, tmp_path / "out", {**HALF, "decoder": {"target": target}})
    assert output.summary["kv_cache"] == "float16"
    assert all(way["max_abs"] < 0.02 and way["kl"] < 1e-5 for way in output.summary["parity"])
    halves, caches = float_types(tmp_path / "out")
    assert caches == {onnx.TensorProto.FLOAT16}
    assert onnx.TensorProto.FLOAT16 in halves
    export_decoder(parent, tmp_path / "wide", {**FIELDS, "decoder": {"target": target}})
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("out", "wide")]
    assert sizes[0] < 0.65 * sizes[1]
    with open_session("onnx", tmp_path / "out", threads=1) as session:  # as other commands run it
        logits = session.run({"input_ids": TOKENS})["logits"]
    decoder = OnnxDecoder(tmp_path / "out", 1, capacity=48)
    last = decoder.forward(TOKENS[-1:])[0, -1]
    assert logits.dtype == last.dtype == np.float32
    assert np.abs(logits[-1, -1] - last).max() < 0.02


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_packed_weights_keep_their_integers_in_a_float16_graph(target, tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-llama", {"dtype": "bfloat16"})
    packed = pack_decoder(parent, tmp_path / "packed")
    fields = {**HALF, "decoder": {"target": target, "int8_embeddings": True}}
    output, _ = export_decoder(packed, tmp_path / "out", fields)
    assert all(way["kl"] < 1e-3 for way in output.summary["parity"])
    assert float_types(tmp_path / "out")[1] == {onnx.TensorProto.FLOAT16}
    with pytest.raises(UsageError, match=r"computes in float16|packed integers"):
        OnnxDecoder(tmp_path / "out", 1, capacity=16, fast_prompts=True)


def test_genai_runs_a_float16_graph(tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-qwen3", {"dtype": "bfloat16"})
    export_decoder(parent, tmp_path / "out", HALF)
    model = onnxruntime_genai.Model(str(tmp_path / "out"))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=32, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    prompt = [5, 6, 7]
    generator.append_tokens(np.array(prompt, dtype=np.int32))
    for _ in range(6):
        generator.generate_next_token()
    decoder, ids = OnnxDecoder(tmp_path / "out", 1, capacity=16), list(prompt)
    for start in (0, *range(3, 8)):
        ids.append(int(decoder.forward(np.array([ids[start:]]))[0, -1].argmax()))
    assert generator.get_sequence(0).tolist() == ids


def test_float32_is_left_out_of_ids():
    for fields, expected in (({}, False), ({"dtype": "float16"}, True)):
        config = ExportOnnxConfig.model_validate(fields)
        tree = with_former_names(config, config.model_dump(mode="json"))
        assert ("dtype" in tree) is expected
