"""Built graphs of classes with experts: packed, in branches, and what is read of their routers."""

import json

import onnx
import pytest
import torch
import transformers
from torch import nn

from compressor.graphs.decoder.class_architecture import class_architecture
from compressor.graphs.decoder.class_experts import experts_of, read_router
from compressor.graphs.decoder.class_modules import UnknownStructureError
from compressor.models.families.transformers.modules import build_on_meta
from compressor.runtimes.onnxruntime.cost import count_parameters
from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder
from passes.export_onnx.config import DecoderConfig
from passes.export_onnx.decoder.requirements import decoder_problems
from tests.support.built_classes import DECODER_CLASSES, save_class
from tests.support.decoders import FIELDS, TOKENS, export_decoder, pack_decoder

EXACT = {"decoder": {"accuracy_level": 1}}
SYMMETRIC = {"symmetric": True, "format": "compressed-tensors"}


def nodes_of(graph):
    """Return the nodes of a graph and of its branches."""
    nodes = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                nodes += nodes_of(attribute.g)
    return nodes


def count(folder, operator):
    return sum(n.op_type == operator for n in nodes_of(onnx.load(folder / "model.onnx").graph))


def router_of(folder, layer=-1):
    tree = json.loads((folder / "config.json").read_text())
    return class_architecture(tree, None).layers[layer].ffn.router


def test_slots_that_only_experts_would_have_are_refused(tmp_path):
    parent = save_class(tmp_path / "parent", *DECODER_CLASSES["olmoe"])
    tree = json.loads((parent.model / "config.json").read_text())
    config = DecoderConfig(adapter_slots=("q_proj", "gate_proj"))
    [problem] = decoder_problems(config, tree)
    assert "'gate_proj' matches no linear layer of the decoder, whose experts" in problem.reason
    assert "q_proj" in problem.remedy and "gate_proj" not in problem.remedy


@pytest.mark.parametrize(("case", "packing"), [("gpt_oss", SYMMETRIC), ("qwen2_moe", {})])
def test_packed_experts_stay_packed_and_compute_what_torch_does(case, packing, tmp_path):
    """The experts of GPT-OSS have biases and a clamped gate; those of Qwen2-MoE zero-points."""
    parent = save_class(tmp_path / "parent", *DECODER_CLASSES[case])
    packed = pack_decoder(parent, tmp_path / "packed", **packing)
    output, _ = export_decoder(packed, tmp_path / "out", FIELDS | EXACT)
    assert all(way["max_abs"] < 1e-4 and way["same"] == 1 for way in output.summary["parity"])
    assert (count(tmp_path / "out", "QMoE"), count(tmp_path / "out", "If")) == (3, 0)
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    integers = [t for t in graph.initializer if len(t.dims) == 3 and ".experts." in t.name]
    data = [t for t in integers if t.name.endswith("data")]
    assert len(data) == 6 and all(t.data_type == onnx.TensorProto.UINT8 for t in data)


def test_packed_experts_of_portable_graphs_are_blocks_in_branches(tmp_path):
    parent = save_class(tmp_path / "parent", *DECODER_CLASSES["granitemoe"])
    packed = pack_decoder(parent, tmp_path / "packed", **SYMMETRIC)
    fields = {**FIELDS, "decoder": {"target": "portable"}, "external_data_threshold_mb": 0}
    output, _ = export_decoder(packed, tmp_path / "out", fields)
    assert all(way["kl"] < 1e-3 for way in output.summary["parity"])
    assert count(tmp_path / "out", "DequantizeLinear") == 3 * (2 + 2 * 6)
    exported = onnx.load(tmp_path / "out" / "model.onnx")
    assert not {node.domain for node in nodes_of(exported.graph)} - {"", "ai.onnx"}
    module = transformers.AutoModelForCausalLM.from_pretrained(parent.model)
    matrices = sum(p.numel() for p in module.parameters() if p.ndim > 1)
    assert 0 <= count_parameters(exported) - matrices < 0.05 * matrices


def test_experts_in_float16_are_added_in_float32(tmp_path):
    parent = save_class(tmp_path / "parent", *DECODER_CLASSES["mixtral"])
    output, _ = export_decoder(parent, tmp_path / "out", {**FIELDS, "dtype": "float16"})
    assert all(way["max_abs"] < 0.02 for way in output.summary["parity"])
    packed = pack_decoder(parent, tmp_path / "packed")
    output, _ = export_decoder(packed, tmp_path / "half", {**FIELDS, "dtype": "float16"})
    assert count(tmp_path / "half", "QMoE") == 3


def test_integers_that_qmoe_does_not_take_are_products_in_branches(tmp_path):
    """QMoE rounds activations of 8-bit experts at any level."""
    parent = save_class(tmp_path / "parent", *DECODER_CLASSES["mixtral"])
    packed = pack_decoder(parent, tmp_path / "packed", bits=8, **SYMMETRIC)
    output, _ = export_decoder(packed, tmp_path / "out", FIELDS | EXACT)
    assert all(way["max_abs"] < 1e-4 for way in output.summary["parity"])
    assert (count(tmp_path / "out", "QMoE"), count(tmp_path / "out", "If")) == (0, 18)
    assert count(tmp_path / "out", "MatMulNBits") == 3 * (2 + 2 * 6)


def test_integers_of_experts_that_no_operator_holds_are_named(tmp_path):
    parent = save_class(tmp_path / "parent", *DECODER_CLASSES["mixtral"])
    packed = pack_decoder(parent, tmp_path / "packed", bits=3, **SYMMETRIC)
    with pytest.raises(Exception, match=r"experts\.5: gate_proj, up_proj: 3 bits"):
        export_decoder(packed, tmp_path / "out", FIELDS)


def test_a_graph_of_packed_experts_generates_the_tokens_of_torch(tmp_path):
    parent = save_class(tmp_path / "parent", *DECODER_CLASSES["qwen3_moe"])
    packed = pack_decoder(parent, tmp_path / "packed", **SYMMETRIC)
    export_decoder(packed, tmp_path / "out", FIELDS | EXACT)
    module = transformers.AutoModelForCausalLM.from_pretrained(packed.model).eval()
    prompt = torch.from_numpy(TOKENS[:1, :12])
    expected = module.generate(prompt, max_new_tokens=16, do_sample=False, eos_token_id=None)
    decoder = OnnxDecoder(tmp_path / "out", 1, capacity=32)
    tokens = [int(decoder.forward(TOKENS[:1, :12])[0, -1].argmax())]
    while len(tokens) < 16:
        tokens.append(int(decoder.forward(torch.tensor([[tokens[-1]]]).numpy())[0, -1].argmax()))
    assert tokens == expected[0, 12:].tolist()


def test_what_a_router_computes_is_measured(tmp_path):
    save_class(tmp_path / "dots", *DECODER_CLASSES["dots1"])
    router = router_of(tmp_path / "dots")
    assert (router.scores, router.is_normalized, router.factor) == ("sigmoid", False, 2.5)
    assert router.groups is not None and (router.groups.count, router.groups.kept) == (3, 2)
    assert router.correction == "mlp.gate.e_score_correction_bias"
    save_class(tmp_path / "phi", *DECODER_CLASSES["phimoe"])
    assert router_of(tmp_path / "phi").scores == "sparse mixer"
    save_class(tmp_path / "oss", *DECODER_CLASSES["gpt_oss"])
    router = router_of(tmp_path / "oss")
    assert (router.scores, router.is_normalized, router.bias) == (
        "softmax",
        True,
        "mlp.router.bias",
    )


class _Doubled(nn.Module):
    """A router whose shares no rule gives."""

    def __init__(self, router):
        super().__init__()
        self.router = router

    def forward(self, x):
        logits, shares, indices = self.router(x)
        return logits, shares**2, indices


def test_a_router_that_no_rule_describes_is_a_problem(tmp_path):
    save_class(tmp_path, *DECODER_CLASSES["mixtral"])
    module = build_on_meta(json.loads((tmp_path / "config.json").read_text()))
    block = module.model.layers[0].mlp
    assert experts_of(block) == "experts"
    assert read_router(block, "experts", None, None).chosen == 2
    block.gate = _Doubled(block.gate)
    with pytest.raises(UnknownStructureError, match="MixtralSparseMoeBlock"):
        read_router(block, "experts", None, None)
