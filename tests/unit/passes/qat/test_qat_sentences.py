"""A sentence encoder in integers, its tables too, from torch to what ONNX Runtime computes."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from calibration.sources.arrays import ArrayDataset
from calibration.table import read_table
from compressor.engine.contract import PassContext
from compressor.errors import DataError, RequirementError
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.models.quantized.fake_quantization import IntegerEmbedding, IntegerLayer
from compressor.models.quantized.quantization import read_quantization
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.integer_kernels import inspect_kernels
from passes.export_onnx.step import ExportOnnx, ExportOnnxConfig
from passes.qat.step import Qat, QatConfig

FAMILY = SentenceEncoder()
CONFIG = FAMILY.slim(
    FAMILY.presets["tiny"],
    num_hidden_layers=1,
    vocab_size=512,
    hidden_size=48,
    intermediate_size=96,
)
TABLES = {f"bert.embeddings.{name}_embeddings" for name in ("word", "position", "token_type")}


def texts(count=48, length=16, padding=0):
    generator = np.random.default_rng(0)
    mask = (np.arange(length) < generator.integers(3, length, count)[:, None]).astype(np.int64)
    ids = np.where(mask, generator.integers(1, CONFIG.vocab_size, mask.shape), padding)
    return ArrayDataset({"input_ids": ids, "attention_mask": mask}, ("input_ids", "attention_mask"))


SETS = {"texts": texts(), "other-padding": texts(padding=7)}


def context(folder):
    return PassContext(
        {}, SETS.__getitem__, folder, 0, 1, "cpu", "ab" * 32, lambda *_: None, lambda _: None
    )


def run(pass_, config, parent, out):
    out.mkdir(parents=True)
    pass_.requires(config, parent, context(out.parent))
    output = pass_.run(config, parent, out, context(out.parent))
    pass_.ensures(config, parent, out, context(out.parent))
    return output.summary


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    torch.manual_seed(0)
    FAMILY.save(FAMILY.build(CONFIG), CONFIG, folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", kind="torch"))


def quantized(parent, out, **fields):
    calibration = {"data": "texts", "num_samples": 48, "batch_size": 16}
    tree = {"calibration": calibration | fields.pop("calibration", {}), "embeddings": True} | fields
    return run(Qat(), QatConfig.model_validate_json(json.dumps(tree)), parent, out)


@pytest.fixture(scope="module")
def exported(parent, tmp_path_factory):
    """The folders of a quantized model and of its export, and what both passes tell."""
    folder = tmp_path_factory.mktemp("exported")
    told = quantized(parent, folder / "quantized")
    config = ExportOnnxConfig.model_validate_json(
        '{"parity": {"data": "texts", "num_samples": 16, "batch_size": 8}}'
    )
    rounded = SimpleNamespace(
        model=folder / "quantized", manifest=SimpleNamespace(id="cd34", kind="quantized")
    )
    return (
        folder / "quantized",
        folder / "onnx",
        told | run(ExportOnnx(), config, rounded, folder / "onnx"),
    )


def vectors(kind, folder, name="texts"):
    with open_session(kind, folder, threads=1) as session:
        return session.run(SETS[name].batch(np.arange(48)))["embedding"]


def test_every_layer_and_table_is_integer_and_vectors_stay_where_they_are(parent, exported):
    rounded, _, told = exported
    assert (told["integer_layers"], told["float_layers"], told["integer_tables"]) == (6, 0, 3)
    assert set(read_quantization(rounded).embeddings) == TABLES
    cosines = (vectors("torch", parent.model) * vectors("quantized", rounded)).sum(axis=1)
    assert 0.999 < cosines.min() < 0.999999


def test_onnx_runtime_says_what_torch_says_with_integers(exported):
    rounded, written, told = exported
    cosines = (vectors("quantized", rounded) * vectors("onnx", written)).sum(axis=1)
    assert cosines.min() > 0.9999
    assert told["onnxruntime_float"] == []
    assert sum(inspect_kernels(written).integer.values()) == told["integer_layers"] == 6


def test_the_file_holds_tables_and_weights_as_integers(exported):
    graph = onnx.load(exported[1] / "model.onnx").graph
    large = {one.name: one for one in graph.initializer if np.prod(one.dims) > 1000}
    assert {one.data_type for one in large.values()} == {onnx.TensorProto.INT8}
    tables = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in large]
    readers = [one.op_type for node in tables for one in graph.node if node.output[0] in one.input]
    assert (
        readers == ["DequantizeLinear"] * 2
    )  # of words and positions; that of two segments is small


def test_rows_of_a_table_are_within_half_a_step(parent, exported):
    table = load_module(exported[0]).get_submodule("bert.embeddings.word_embeddings")
    assert isinstance(table, IntegerEmbedding)
    exact = load_module(parent.model).get_submodule("bert.embeddings.word_embeddings").weight
    with torch.no_grad():
        off = (table(torch.arange(CONFIG.vocab_size)) - exact).abs()
    assert (off <= table.weight_grid.scale / 2 * 1.001).all()


def test_padding_is_not_calibrated_on(parent, tmp_path):
    for name in ("texts", "other-padding"):
        quantized(parent, tmp_path / name, calibration={"data": name})
    one, other = (load_module(tmp_path / name).state_dict() for name in ("texts", "other-padding"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-6, rtol=1e-4, msg=name)


def test_tables_may_stay_in_float(parent, tmp_path):
    told = quantized(
        parent, tmp_path / "some", exclude=["*.position_embeddings", "*.token_type_embeddings"]
    )
    assert told["integer_tables"] == 1
    assert quantized(parent, tmp_path / "none", embeddings=False)["integer_tables"] == 0
    assert not [
        one for one in load_module(tmp_path / "none").modules() if isinstance(one, IntegerEmbedding)
    ]
    with pytest.raises(RequirementError, match="names no layer") as caught:
        quantized(parent, tmp_path / "wrong", exclude=["*.word_embedding"])
    assert "bert.embeddings.word_embeddings" in caught.value.remedy


def test_grids_reach_as_far_as_values_do_on_either_side(exported):
    """GELU's results end at -0.17, and go up to what they like."""
    module = load_module(exported[0])
    grids = {
        name: one.input_grid.grid
        for name, one in module.named_modules()
        if isinstance(one, IntegerLayer)
    }
    after_gelu = [
        grid
        for name, grid in grids.items()
        if name.endswith("output.dense") and "attention" not in name
    ]
    assert all(0 < grid.below < 128 and grid.highest == 255 - grid.below for grid in after_gelu)


@pytest.mark.parametrize(
    ("fields", "error", "told"),
    [
        (
            {"keep_float": {"data": "texts", "metric": "agreement"}},
            RequirementError,
            "`keep_float`.*has no answers",
        ),
        (
            {"fine_tuning": {"train": "texts", "validation": None}},
            RequirementError,
            "`fine_tuning`.*has no answers",
        ),
        (
            {"calibration": {"data": "long"}},
            DataError,
            "tokens is 40, and the model takes 32 at most",
        ),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_runs(
    parent, tmp_path, monkeypatch, fields, error, told
):
    monkeypatch.setitem(SETS, "long", texts(length=40))
    with pytest.raises(error, match=told):
        quantized(parent, tmp_path / "out", **fields)


def test_tensorrt_looks_no_integers_up():
    with pytest.raises(ValueError, match="leave `embeddings` out"):
        QatConfig.model_validate_json(
            '{"calibration": {"data": "texts"}, "embeddings": true, "target": "tensorrt"}'
        )


def with_an_outlier(parent, folder, times=60.0):
    """A model one channel of whose feed-forward inputs reaches far; what reads it, and what it is added to, makes up for that."""
    module = load_module(parent.model)
    layer = module.get_submodule("bert.encoder.layer.0")
    with torch.no_grad():
        layer.attention.output.LayerNorm.weight[5] *= times
        layer.intermediate.dense.weight[:, 5] /= times
    FAMILY.save(module, CONFIG, folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ef56", kind="torch"))


def inner(folder):
    """What the layer says that reads the outlier."""
    module, said = load_module(folder), []
    layer = module.get_submodule("bert.encoder.layer.0.intermediate.dense")
    layer.register_forward_hook(lambda _, inputs, result: said.append(result))
    with torch.no_grad():
        module(
            **{
                name: torch.from_numpy(array)
                for name, array in SETS["texts"].batch(np.arange(48)).items()
            }
        )
    return said[0][torch.from_numpy(SETS["texts"].arrays["attention_mask"]) == 1]


def test_channels_that_reach_far_are_scaled_down_before_they_are_rounded(parent, tmp_path):
    far = with_an_outlier(parent, tmp_path / "far")
    fields = {"calibration": {"observer": "min-max"}}
    assert quantized(far, tmp_path / "plain", **fields)["smoothed_layers"] == 0
    told = quantized(far, tmp_path / "smooth", smoothing=8, **fields)
    assert read_quantization(tmp_path / "smooth").smoothed == (
        "bert.encoder.layer.0.intermediate.dense",
    )
    assert told["smoothed_layers"] == 1
    exact, plain, smooth = (
        inner(folder) for folder in (far.model, tmp_path / "plain", tmp_path / "smooth")
    )
    assert (smooth - exact).square().mean() < 0.3 * (plain - exact).square().mean()


def test_smoothing_itself_changes_nothing(parent, tmp_path):
    far = with_an_outlier(parent, tmp_path / "far")
    quantized(far, tmp_path / "smooth", smoothing=4, embeddings=False, bias_correction=False)
    module = load_module(tmp_path / "smooth")
    for one in module.modules():
        if isinstance(one, IntegerLayer):
            one.active = False
    feed = {
        name: torch.from_numpy(array) for name, array in SETS["texts"].batch(np.arange(48)).items()
    }
    with torch.no_grad():
        torch.testing.assert_close(
            module(**feed)["embedding"],
            load_module(far.model)(**feed)["embedding"],
            atol=1e-5,
            rtol=0,
        )


def test_a_table_and_smoothing_do_not_go_together(parent, tmp_path):
    tree = {"calibration": {"data": "texts", "table": "other"}, "smoothing": 8}
    with pytest.raises(ValueError, match="leave `smoothing` out"):
        QatConfig.model_validate_json(json.dumps(tree))
    far = with_an_outlier(parent, tmp_path / "far")
    quantized(far, tmp_path / "smooth", smoothing=4)
    with pytest.raises(RequirementError, match="ranges of smoothed inputs"):
        read_table(tmp_path / "smooth", "ef56", 8)


def test_a_float_encoder_is_exported_too(parent, tmp_path):
    config = ExportOnnxConfig.model_validate_json(
        '{"parity": {"data": "texts", "num_samples": 16, "batch_size": 8}}'
    )
    run(ExportOnnx(), config, parent, tmp_path / "onnx")
    assert np.abs(vectors("onnx", tmp_path / "onnx") - vectors("torch", parent.model)).max() < 1e-5
