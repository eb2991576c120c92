"""qat of transformers' classes: stored as the class stores itself, opened with the same grids."""

import json
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import transformers

from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext
from compressor.errors import ModelError, RequirementError
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.quantized.fake_quantization import FakeQuantizer, IntegerLayer
from compressor.models.quantized.quantization import QUANTIZATION, SCALES, read_quantization
from compressor.runtimes.formats import recognize
from passes.qat.config import QatConfig
from passes.qat.step import Qat
from tests.support.encoder_classes import CLASSES


class Samples(Dataset):
    """Random inputs of a class."""

    label_name = None

    def __init__(self, case, names):
        batch = case.batch(8, seed=3)
        self.arrays = {name: batch[name].numpy() for name in names}
        self.input_names = tuple(names)

    def __len__(self):
        return 8

    def batch(self, indices, epoch=0):
        return {name: array[indices] for name, array in self.arrays.items()}


def write_checkpoint(name, folder, dtype=torch.float32):
    case = CLASSES[name]
    case.build().to(dtype).save_pretrained(folder / "model")
    return folder / "model"


def quantize(name, folder, **fields):
    """Quantize the checkpoint in ``folder``; return the folder of the result."""
    model, out, work = folder / "model", folder / "out", folder / "work"
    for path in (out, work):
        path.mkdir()
    signature = read_description(model).signature
    data = Samples(CLASSES[name], [spec.name for spec in signature.required_inputs])
    context = PassContext(
        artifacts={},
        data={"data": data}.__getitem__,
        work=work,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="ab" * 32,
        progress=lambda *_: None,
        note=lambda _: None,
        cache=folder / "cache",
    )
    tree = {"calibration": {"data": "data", "num_samples": 8}, "min_share": 0} | fields
    config = QatConfig.model_validate_json(json.dumps(tree))
    parent = SimpleNamespace(model=model, manifest=SimpleNamespace(id="ab" * 32))
    qat = Qat()
    qat.requires(config, parent, context)
    qat.run(config, parent, out, context)
    qat.ensures(config, parent, out, context)
    return out


def outputs_of(module, name):
    case = CLASSES[name]
    batch = case.batch(4, seed=5)
    with torch.no_grad():
        return module(**batch)["logits"].double()


def cosine(first, second):
    rows = first.flatten(1), second.flatten(1)
    return torch.nn.functional.cosine_similarity(*rows).min().item()


@pytest.mark.parametrize(
    ("name", "integer"), [("bert", 14), ("albert", 9), ("resnet", 13), ("wav2vec2", 16)]
)
def test_a_class_is_stored_as_it_stores_itself_and_opened_with_its_grids(tmp_path, name, integer):
    write_checkpoint(name, tmp_path)
    out = quantize(name, tmp_path)
    assert recognize(out).format.name == "quantized"
    assert len(read_quantization(out).layers) == integer
    expected = outputs_of(load_module(tmp_path / "model"), name)
    assert cosine(expected, outputs_of(load_module(out), name)) > 0.97
    # transformers itself loads the float weights, with corrected biases, and nothing is left over
    loaded, info = getattr(transformers, CLASSES[name].class_name).from_pretrained(
        out, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert cosine(expected, outputs_of(loaded.eval(), name)) > 0.97


def test_a_folded_norm_comes_back_as_one_that_adds_the_bias(tmp_path):
    write_checkpoint("resnet", tmp_path)
    out = quantize("resnet", tmp_path)
    quantization = read_quantization(out)
    layer, norm = next(iter(quantization.norms().items()))
    stored = safetensors.torch.load_file(out / "model.safetensors")
    assert f"{layer}.bias" not in stored
    module = load_module(out)
    assert isinstance(module.get_submodule(norm), torch.nn.Identity)
    assert torch.equal(module.get_submodule(layer).bias, stored[f"{norm}.bias"])
    assert torch.equal(module.get_submodule(layer).weight, stored[f"{layer}.weight"])


def test_smoothed_weights_are_stored_without_their_factors(tmp_path):
    folder = write_checkpoint("bert", tmp_path)
    name = "bert.encoder.layer.0.intermediate.dense"
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    norm = "bert.encoder.layer.0.attention.output.LayerNorm.weight"
    tensors[norm][3] = 40.0
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    out = quantize("bert", tmp_path, smoothing=3)
    assert name in read_quantization(out).smoothed
    stored = safetensors.torch.load_file(out / "model.safetensors")[f"{name}.weight"]
    assert torch.allclose(stored, tensors[f"{name}.weight"], rtol=1e-6)
    inner = load_module(out).get_submodule(name).layer
    assert inner.input_factor[3] < 0.5
    assert torch.allclose(inner.weight * inner.input_factor, stored, rtol=1e-6)


def test_a_weight_that_is_computed_from_others_stays_float_and_is_named(tmp_path):
    write_checkpoint("wav2vec2", tmp_path)
    kept = read_quantization(quantize("wav2vec2", tmp_path)).kept_float
    assert kept == {
        "wav2vec2.encoder.pos_conv_embed.conv": "its weight is computed from others, such as by "
        "weight normalization"
    }


def test_a_half_precision_checkpoint_is_quantized_in_float32(tmp_path):
    write_checkpoint("bert", tmp_path, torch.bfloat16)
    out = quantize("bert", tmp_path)
    assert json.loads((out / "config.json").read_bytes())["dtype"] == "float32"
    module = load_module(out)
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    expected = outputs_of(load_module(tmp_path / "model").float(), "bert")
    assert cosine(expected, outputs_of(module, "bert")) > 0.97


def test_scales_that_do_not_fit_are_named(tmp_path):
    write_checkpoint("bert", tmp_path)
    out = quantize("bert", tmp_path)
    scales = safetensors.torch.load_file(out / SCALES)
    first = next(iter(scales))
    removed = scales.pop(first)
    safetensors.torch.save_file(scales | {"other.log2_scale": removed}, out / SCALES)
    with pytest.raises(ModelError, match=f"missing: {first}") as caught:
        load_module(out)
    assert "unexpected: other.log2_scale" in str(caught.value)
    (out / SCALES).unlink()
    with pytest.raises(ModelError, match=f"{SCALES} is missing"):
        load_module(out)


def test_a_layer_with_grids_has_the_attributes_of_its_layer(tmp_path):
    write_checkpoint("bert", tmp_path)
    module = load_module(quantize("bert", tmp_path))
    layers = [layer for layer in module.modules() if isinstance(layer, IntegerLayer)]
    assert layers[0].weight is layers[0].layer.weight
    assert layers[0].in_features == 32
    assert not hasattr(layers[0], "no_such_attribute")
    assert all(layer.is_sound() for layer in module.modules() if isinstance(layer, FakeQuantizer))


def test_a_decoder_whose_graph_is_built_has_no_place_for_grids(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    with pytest.raises(RequirementError, match="no storage for integer grids"):
        quantize("bert", tmp_path)
    assert not (tmp_path / "out" / QUANTIZATION).exists()


def test_layers_that_read_constants_stay_float_and_are_named(tmp_path):
    write_checkpoint("detr", tmp_path)
    kept = read_quantization(quantize("detr", tmp_path)).kept_float
    attention = "model.decoder.layers.0.self_attn"
    assert kept == {f"{attention}.{name}": "its input is always 0" for name in ("v_proj", "o_proj")}
