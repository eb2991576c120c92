"""Slots for adapters in the graph of a decoder: what it computes with and without them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.torch import load_file, save_file

from compressor.errors import ModelError, UsageError
from compressor.graphs.decoder.adapter_slots import SLOTS_KEY, AdapterSlot, slot_inputs
from compressor.models.adapters.factors import read_factors
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.formats import recognize
from compressor.runtimes.onnxruntime.decoder.adapters import write_onnx_adapter
from compressor.runtimes.rows import RowOptions
from compressor.runtimes.torch.session import AdaptedSession
from tests.support.built_classes import DECODER_CLASSES, save_class
from tests.support.decoders import TOKENS, pack_decoder, save_decoder
from tests.support.slots import PREFIX, export_with_slots, write_random_adapter

IDS = TOKENS[0, :24]
WEIGHTS = "adapter_model.safetensors"
EXACT = {"accuracy_level": 1}


def shapes_of(folder, *ends):
    modules = load_module(folder).named_modules()
    return {n: tuple(m.weight.shape) for n, m in modules if n.rpartition(".")[2] in ends}


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """A packed decoder, its graphs with and without slots, and two adapters of it."""
    folder = tmp_path_factory.mktemp("slots")
    packed = pack_decoder(save_decoder(folder / "float", "tiny-llama"), folder)
    (folder / "packed").symlink_to(packed.model)
    export_with_slots(packed, folder / "plain", **EXACT)
    export_with_slots(packed, folder / "slots", "q_proj", "v_proj", "down_proj", **EXACT)
    write_random_adapter(packed.model, folder / "one", shapes_of(packed.model, "q_proj", "v_proj"))
    write_random_adapter(packed.model, folder / "other", shapes_of(packed.model, "down_proj"))
    return folder


def open_rows(folder, rows=2, **adapters):
    return recognize(folder).format.open_rows(folder, RowOptions(1, rows, 40, adapters=adapters))


def test_empty_slots_change_no_bit(bed):
    logits = [open_rows(bed / n).append(0, 0, IDS, None, 24).copy() for n in ("plain", "slots")]
    assert np.array_equal(*logits)
    sizes = [(bed / name / "model.onnx").stat().st_size for name in ("plain", "slots")]
    assert 0 < sizes[1] - sizes[0] < 12_000


@pytest.mark.parametrize("name", ["one", "other"])
def test_an_adapter_gives_the_logits_of_peft(bed, name):
    rows = open_rows(bed / "slots", **{name: bed / name})
    base = rows.append(0, 0, IDS, None, 24).copy()
    rows.use_adapter(0, name)
    ours = rows.append(0, 0, IDS, None, 24).copy()
    with AdaptedSession(bed / name, 1, "cpu") as session:
        expected = session.run({"input_ids": IDS[None]})["logits"][0]
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    assert np.abs(ours - base).max() > 0.1
    rows.use_adapter(0, None)
    assert np.array_equal(rows.append(0, 0, IDS, None, 24), base)


def test_a_portable_graph_takes_adapters_of_any_linear_layer(tmp_path):
    parent = save_decoder(tmp_path / "float", "tiny-llama")
    export_with_slots(parent, tmp_path / "onnx", "all-linear", target="portable")
    adapter = write_random_adapter(
        parent.model, tmp_path / "adapter", shapes_of(parent.model, "k_proj", "up_proj", "o_proj")
    )
    rows = open_rows(tmp_path / "onnx", a=adapter)
    rows.use_adapter(1, "a")
    ours = rows.append(1, 0, IDS, None, 24)
    with AdaptedSession(adapter, 1, "cpu") as session:
        expected = session.run({"input_ids": IDS[None]})["logits"][0]
    np.testing.assert_allclose(ours, expected, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("gpt_neox", ("query_key_value", "dense_4h_to_h")),  # rows of the graph in another order
        ("gpt2", ("c_attn", "c_proj")),  # matrices stored as [inputs, outputs]
    ],
)
def test_fused_and_transposed_projections_take_adapters(tmp_path, name, ends):
    parent = save_class(tmp_path / "float", *DECODER_CLASSES[name])
    export_with_slots(parent, tmp_path / "onnx", *ends)
    shapes = shapes_of(parent.model, *ends)
    if name == "gpt2":
        shapes = {module: shape[::-1] for module, shape in shapes.items()}
    adapter = write_random_adapter(parent.model, tmp_path / "random", shapes)
    adapter = changed_copy(adapter, tmp_path / "adapter", fan_in_fan_out=name == "gpt2")
    rows = open_rows(tmp_path / "onnx", a=adapter)
    base = rows.append(0, 0, IDS, None, 24).copy()
    rows.use_adapter(1, "a")
    ours = rows.append(1, 0, IDS, None, 24)
    with AdaptedSession(adapter, 1, "cpu") as session:
        expected = session.run({"input_ids": IDS[None]})["logits"][0]
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    assert np.abs(ours - base).max() > 0.1


def test_rows_of_several_adapters_step_as_each_alone(bed):
    adapters = {name: bed / name for name in ("one", "other")}
    together = open_rows(bed / "slots", 3, **adapters)
    names = (None, "one", "other")
    token = np.array([9, 9, 9])
    for row, name in enumerate(names):
        together.use_adapter(row, name)
        together.append(row, 0, IDS, None, 1)
    together.swap(1, 2, 24)
    stepped = together.step(np.array([24] * 3), token, [None] * 3).copy()
    for row, name in enumerate((None, "other", "one")):
        alone = open_rows(bed / "slots", 1, **adapters)
        alone.use_adapter(0, name)
        alone.append(0, 0, IDS, None, 1)
        assert np.array_equal(alone.append(0, 24, token[:1], None, 1)[0], stepped[row])


def test_onnx_runtime_loads_the_file_of_an_adapter(bed, tmp_path):
    file = tmp_path / "one.onnx_adapter"
    assert write_onnx_adapter(bed / "slots", bed / "one", file) == file.stat().st_size
    session = onnxruntime.InferenceSession(str(bed / "slots" / "model.onnx"))
    active = onnxruntime.LoraAdapter()
    active.Load(str(file))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(active)
    feeds = {"input_ids": IDS[None], "attention_mask": np.ones((1, 24), np.int64)}
    for value in session.get_inputs():
        if value.name not in feeds:  # an empty cache
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    theirs = session.run(["logits"], feeds, options)[0][0]
    rows = open_rows(bed / "slots", one=bed / "one")
    rows.use_adapter(0, "one")
    np.testing.assert_allclose(rows.append(0, 0, IDS, None, 24), theirs, atol=1e-4)
    with pytest.raises(UsageError, match="has no slots"):
        write_onnx_adapter(bed / "plain", bed / "one", tmp_path / "other")


def test_a_graph_that_lost_its_slots_is_refused(bed, tmp_path):
    shutil.copytree(bed / "slots", tmp_path / "onnx")
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == SLOTS_KEY:
            entry.value = entry.value.replace("layers.0.self_attn", "layers.7.self_attn")
    onnx.save(model, tmp_path / "onnx" / "model.onnx")
    message = r"lacks the inputs of adapter slots .* layers\.7\.self_attn\.q_proj"
    with pytest.raises(ModelError, match=message):
        open_rows(tmp_path / "onnx", one=bed / "one")
    with pytest.raises(ModelError, match=message):
        write_onnx_adapter(tmp_path / "onnx", bed / "one", tmp_path / "one.onnx_adapter")


def changed_copy(source, target, **changes):
    shutil.copytree(source, target)
    config = json.loads((target / "adapter_config.json").read_text()) | changes
    (target / "adapter_config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 8}, "has rank 4, and the config 8"),
        ({"use_dora": True}, "more than a plain LoRA: use_dora: True"),
        ({"peft_type": "IA3"}, "slots of a graph take LoRA alone"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"use_qalora": True}, "more than a plain LoRA: use_qalora: True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
        ({"a_field_of_tomorrow": 3}, "a_field_of_tomorrow: 3"),
        ({"lora_alpha": True}, "`lora_alpha: True`, expected"),
        ({"lora_alpha": 0}, "`lora_alpha: 0`, expected"),
        ({"lora_alpha": 1e300}, "exceed the range of float32"),
        ({"target_modules": ["q_proj", "o_proj", "down_proj"]}, "targets 3 modules that it has no"),
        (
            {"target_modules": r".*\.(q|down)_proj"},
            r"factors for: model\.layers\.0\.mlp\.down_proj",
        ),
        ({"target_modules": "("}, "is no regular expression"),
    ],
)
def test_other_kinds_and_ranks_are_refused(bed, tmp_path, changes, message):
    adapter = changed_copy(bed / "one", tmp_path / "changed", **changes)
    with pytest.raises(ModelError, match=message):
        open_rows(bed / "slots", x=adapter)


@pytest.mark.parametrize("change", ["missing", "layer", "module", "size", "nan", "cut"])
def test_tensors_that_do_not_fit_are_refused(bed, tmp_path, change):
    adapter = changed_copy(bed / "one", tmp_path / "changed")
    tensors = load_file(adapter / WEIGHTS)
    first = min(tensors)
    module = first.removesuffix(".lora_A.weight")
    if change == "missing":
        del tensors[first]
    elif change == "layer":
        tensors = {n: tensor for n, tensor in tensors.items() if ".layers.1." not in n}
    elif change == "module":
        tensors = {n.replace("self_attn", "attn"): tensor for n, tensor in tensors.items()}
    elif change == "size":
        tensors[first] = tensors[first][:, :-1].contiguous()
    elif change == "nan":
        tensors[first][0, 0] = float("nan")
    save_file(tensors, adapter / WEIGHTS)
    if change == "cut":
        content = (adapter / WEIGHTS).read_bytes()
        (adapter / WEIGHTS).write_bytes(content[: len(content) // 2])
    messages = {
        "missing": f"{first} is missing",
        "layer": r"targets 2 modules that it has no factors for: model\.layers\.1",
        "module": "has no slot for it",
        "size": f"{module.removeprefix(PREFIX)} maps",
        "nan": "NaN or infinite",
        "cut": WEIGHTS,
    }
    with pytest.raises(ModelError, match=messages[change]):
        open_rows(bed / "slots", x=adapter)


def test_factors_in_bfloat16_are_read(bed, tmp_path):
    adapter = changed_copy(bed / "one", tmp_path / "half")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(adapter / WEIGHTS).items()}
    save_file(tensors, adapter / WEIGHTS)
    factors = read_factors(adapter)
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            assert np.array_equal(factors[module].a_IR, tensor.float().numpy().T)


def test_factors_beyond_the_range_of_a_graph_are_refused(bed, tmp_path):
    adapter = changed_copy(bed / "one", tmp_path / "large", lora_alpha=1e6)
    slot = AdapterSlot("q", ("model.layers.0.self_attn.q_proj",), (64,), 64)
    factors = {name: read_factors(adapter)[name] for name in slot.modules}
    with pytest.raises(ModelError, match=r"exceeds the range of float16 in q\.lora_B"):
        slot_inputs((slot,), factors, np.float16, adapter)
    assert slot_inputs((slot,), factors, np.float32, adapter)


def test_another_base_is_refused(bed, tmp_path):
    parent = save_decoder(tmp_path / "float", "tiny-llama")
    adapter = write_random_adapter(parent.model, tmp_path / "a", shapes_of(parent.model, "q_proj"))
    with pytest.raises(ModelError, match="was exported from another model"):
        open_rows(bed / "slots", x=adapter)


def test_graphs_without_slots_take_no_adapters(bed):
    with pytest.raises(UsageError, match="has no slots"):
        open_rows(bed / "plain", x=bed / "one")
    packed = (bed / "packed").resolve()
    with pytest.raises(UsageError, match="no ONNX graph"):
        open_rows(packed, x=bed / "one")
    with pytest.raises(UsageError, match="there is no adapter 'y'"):
        open_rows(bed / "slots", x=bed / "one").use_adapter(0, "y")
