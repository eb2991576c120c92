"""A quantized sentence encoder with embedding tables, from torch to ONNX Runtime."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from calibration.sources.arrays import ArrayDataset
from calibration.table import read_table
from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.models.quantized.fake_quantization import IntegerEmbedding, IntegerLayer
from compressor.models.quantized.quantization import read_quantization
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.integer_kernels import inspect_kernels
from passes.export_onnx.step import ExportOnnx
from passes.qat.step import Qat
from tests.support.qat import artifact

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


DATA_SETS = {"texts": texts(), "other-padding": texts(padding=7)}


def inputs():
    batch = DATA_SETS["texts"].batch(np.arange(48))
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def run(pass_, fields, parent, out):
    """Run a pass on a parent artifact, and return its summary."""
    out.mkdir(parents=True)
    context = PassContext(
        artifacts={},
        data=DATA_SETS.__getitem__,
        work=out.parent,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="ab" * 32,
        progress=lambda *_: None,
        note=lambda _: None,
    )
    config = pass_.Config.model_validate_json(json.dumps(fields))
    pass_.requires(config, parent, context)
    output = pass_.run(config, parent, out, context)
    pass_.ensures(config, parent, out, context)
    return output.summary


def quantize(parent, out, **fields):
    """Quantize all layers and tables, calibrated on all texts; returns the summary."""
    calibration = {"data": "texts", "num_samples": 48, "batch_size": 16}
    calibration |= fields.pop("calibration", {})
    return run(
        Qat(), {"calibration": calibration, "quantize_embeddings": True} | fields, parent, out
    )


def export(parent, out):
    """Export a model to ONNX, and return the summary."""
    parity = {"data": "texts", "num_samples": 16, "batch_size": 8}
    return run(ExportOnnx(), {"parity": parity}, parent, out)


def embeddings(format_, folder, name="texts"):
    with open_session(format_, folder, threads=1) as session:
        return session.run(DATA_SETS[name].batch(np.arange(48)))["embedding"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    torch.manual_seed(0)
    FAMILY.save(FAMILY.build(CONFIG), CONFIG, folder)
    return artifact(folder)


@pytest.fixture(scope="module")
def exported(parent, tmp_path_factory):
    """A quantized model, its export, and the summaries of both passes."""
    folder = tmp_path_factory.mktemp("exported")
    summary = dict(quantize(parent, folder / "quantized"))
    summary |= export(artifact(folder / "quantized", "cd34"), folder / "onnx")
    return SimpleNamespace(quantized=folder / "quantized", onnx=folder / "onnx", summary=summary)


def test_all_layers_and_tables_are_integer_and_embeddings_change_little(parent, exported):
    summary = exported.summary
    assert (summary["integer_layers"], summary["float_layers"]) == (6, 0)
    assert summary["integer_tables"] == 3
    assert set(read_quantization(exported.quantized).embeddings) == TABLES
    expected = embeddings("torch", parent.model)
    cosines = (expected * embeddings("quantized", exported.quantized)).sum(axis=1)
    assert 0.999 < cosines.min() < 0.999999


def test_onnx_runtime_computes_the_embeddings_of_torch_with_integer_kernels(exported):
    expected = embeddings("quantized", exported.quantized)
    cosines = (expected * embeddings("onnx", exported.onnx)).sum(axis=1)
    assert cosines.min() > 0.9999
    assert exported.summary["onnxruntime_float"] == []
    kernels = inspect_kernels(exported.onnx).integer
    assert sum(kernels.values()) == exported.summary["integer_layers"] == 6


def test_the_graph_stores_tables_and_weights_as_integers(exported):
    graph = onnx.load(exported.onnx / "model.onnx").graph
    large = {tensor.name: tensor for tensor in graph.initializer if np.prod(tensor.dims) > 1000}
    assert {tensor.data_type for tensor in large.values()} == {onnx.TensorProto.INT8}
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in large]
    consumers = [
        node.op_type for lookup in lookups for node in graph.node if lookup.output[0] in node.input
    ]
    # The tables of words and positions; the table of two token types is small.
    assert consumers == ["DequantizeLinear"] * 2


def test_rows_of_a_table_are_within_half_a_step(parent, exported):
    table = load_module(exported.quantized).get_submodule("bert.embeddings.word_embeddings")
    assert isinstance(table, IntegerEmbedding)
    exact = load_module(parent.model).get_submodule("bert.embeddings.word_embeddings").weight
    with torch.no_grad():
        error = (table(torch.arange(CONFIG.vocab_size)) - exact).abs()
    assert (error <= table.weight_grid.scale / 2 * 1.001).all()


def test_padding_does_not_change_the_calibration(parent, tmp_path):
    weights = []
    for name in ("texts", "other-padding"):
        quantize(parent, tmp_path / name, calibration={"data": name})
        weights.append(load_module(tmp_path / name).state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-6, rtol=1e-4, msg=name)


def test_tables_stay_in_float_if_ignored_or_not_asked_for(parent, tmp_path):
    ignore = ["*.position_embeddings", "*.token_type_embeddings"]
    assert quantize(parent, tmp_path / "some", ignore=ignore)["integer_tables"] == 1
    summary = quantize(parent, tmp_path / "none", quantize_embeddings=False)
    assert summary["integer_tables"] == 0
    modules = load_module(tmp_path / "none").modules()
    assert not any(isinstance(module, IntegerEmbedding) for module in modules)


def test_a_misspelled_table_is_an_error(parent, tmp_path):
    with pytest.raises(RequirementError, match="matches no layer") as error:
        quantize(parent, tmp_path / "out", ignore=["*.word_embedding"])
    assert "bert.embeddings.word_embeddings" in error.value.remedy


def test_no_table_left_is_an_error(parent, tmp_path):
    with pytest.raises(RequirementError, match="`quantize_embeddings` has no effect"):
        quantize(parent, tmp_path / "out", ignore=["*_embeddings"])


def test_grids_are_asymmetric_after_gelu(exported):
    """GELU's values start at -0.17 and have no upper bound."""
    modules = load_module(exported.quantized).named_modules()
    grids = [
        module.input_grid.grid
        for name, module in modules
        if isinstance(module, IntegerLayer)
        and name.endswith("output.dense")
        and "attention" not in name
    ]
    assert grids
    assert all(0 < grid.below < 128 and grid.highest == 255 - grid.below for grid in grids)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"keep_float": {"data": "texts", "metric": "agreement"}},
            "`keep_float`.*has no logits",
        ),
        (
            {"fine_tuning": {"train": "texts", "validation": None}},
            "`fine_tuning`.*has no logits",
        ),
    ],
)
def test_requirements_are_checked_before_the_run(parent, tmp_path, fields, message):
    with pytest.raises(RequirementError, match=message):
        quantize(parent, tmp_path / "out", **fields)


def with_outlier_channel(parent, folder, factor=60.0):
    """Save a model with one large channel in the input of the feed-forward layer.

    The layer's weights for that channel are as much smaller.
    """
    module = load_module(parent.model)
    layer = module.get_submodule("bert.encoder.layer.0")
    with torch.no_grad():
        layer.attention.output.LayerNorm.weight[5] *= factor
        layer.intermediate.dense.weight[:, 5] /= factor
    FAMILY.save(module, CONFIG, folder)
    return artifact(folder, "ef56")


def feed_forward_output(folder):
    """Return the output of the layer that reads the outlier, at valid positions."""
    module, outputs = load_module(folder), []
    layer = module.get_submodule("bert.encoder.layer.0.intermediate.dense")
    layer.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    with torch.no_grad():
        module(**inputs())
    return outputs[0][inputs()["attention_mask"] == 1]


def test_outlier_channels_are_scaled_down_before_rounding(parent, tmp_path):
    outlier = with_outlier_channel(parent, tmp_path / "outlier")
    fields = {"calibration": {"observer": "min-max"}}
    assert quantize(outlier, tmp_path / "plain", **fields)["smoothed_layers"] == 0
    assert quantize(outlier, tmp_path / "smooth", smoothing=8, **fields)["smoothed_layers"] == 1
    smoothed = read_quantization(tmp_path / "smooth").smoothed
    assert smoothed == ("bert.encoder.layer.0.intermediate.dense",)
    exact = feed_forward_output(outlier.model)
    plain = feed_forward_output(tmp_path / "plain")
    smooth = feed_forward_output(tmp_path / "smooth")
    assert (smooth - exact).square().mean() < 0.3 * (plain - exact).square().mean()


def test_smoothing_alone_does_not_change_the_embeddings(parent, tmp_path):
    outlier = with_outlier_channel(parent, tmp_path / "outlier")
    fields = {"quantize_embeddings": False, "bias_correction": False}
    quantize(outlier, tmp_path / "smooth", smoothing=4, **fields)
    module = load_module(tmp_path / "smooth")
    for layer in module.modules():
        if isinstance(layer, IntegerLayer):
            layer.active = False
    with torch.no_grad():
        expected = load_module(outlier.model)(**inputs())["embedding"]
        torch.testing.assert_close(module(**inputs())["embedding"], expected, atol=1e-5, rtol=0)


def test_a_table_of_smoothed_inputs_cannot_be_reused(parent, tmp_path):
    outlier = with_outlier_channel(parent, tmp_path / "outlier")
    quantize(outlier, tmp_path / "smooth", smoothing=4)
    with pytest.raises(RequirementError, match="ranges of smoothed inputs"):
        read_table(tmp_path / "smooth", "ef56", 8)


def test_a_float_encoder_is_exported(parent, tmp_path):
    export(parent, tmp_path / "onnx")
    difference = embeddings("onnx", tmp_path / "onnx") - embeddings("torch", parent.model)
    assert np.abs(difference).max() < 1e-5
