"""The vision tower of `glm4v` is a file of its own, with which llama.cpp computes images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from compressor.engine.contract import PlanContext
from compressor.errors import RequirementError
from compressor.models.facts import facts_of
from compressor.models.quantized.packed_checkpoint import read_dequantized
from compressor.runtimes.formats import recognize
from passes.awq.config import AwqConfig
from passes.awq.step import Awq
from passes.export_gguf.config import ExportGgufConfig
from passes.export_gguf.step import ExportGguf
from tests.support.decoders import pack_decoder
from tests.support.gguf_checkpoints import (
    edit_tokenizer,
    export_gguf,
    plan_gguf,
    save_gguf_parent,
)
from tests.support.processors import TREE

gguf = pytest.importorskip("gguf")

WIDE = {**TREE["vision_config"], "hidden_size": 64, "intermediate_size": 64}
"""A tower whose rows are whole blocks."""
SIZE = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}
PACKING = {
    "format": "compressed-tensors",
    "symmetric": True,
    "dtype": "float16",
    "gguf_scales": True,
    "vision": {"bits": 8, "group_size": 32, "symmetric": True},
    "lm_head": {"bits": 8, "group_size": 32, "symmetric": True},
}


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return keys and tensors of the tower's file."""
    reader = gguf.GGUFReader(folder / "mmproj.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: (
            tensor.tensor_type.name,
            gguf.quants.dequantize(tensor.data, tensor.tensor_type),
        )
        for tensor in reader.tensors
    }
    return keys, tensors


def test_the_tower_has_the_names_and_keys_of_llamacpps_converter(tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent", "glm4v")
    file, output = export_gguf(parent, tmp_path / "out")
    keys, tensors = read_files(file.parent)
    assert keys["general.architecture"] == "clip"
    assert keys["general.type"] == "mmproj"
    assert keys["clip.projector_type"] == "glm4v"
    assert keys["clip.vision.projection_dim"] == 128
    assert keys["clip.vision.image_mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    kernel = load_file(parent.model / "model.safetensors")[
        "model.visual.patch_embed.proj.weight"
    ].numpy()
    np.testing.assert_array_equal(tensors["v.patch_embd.weight"][1], kernel[:, :, 0])
    np.testing.assert_array_equal(tensors["v.patch_embd.weight.1"][1], kernel[:, :, 1])
    assert {"mm.patch_merger.weight", "mm.model.fc.weight", "v.blk.1.ffn_gate.weight"} <= {*tensors}
    assert output.summary["projector"]["parity"] == {"equal_tensors": len(tensors)}
    text = gguf.GGUFReader(file)
    assert text.fields["glm4.rope.dimension_sections"].contents() == [2, 1, 1, 0]
    assert not [tensor.name for tensor in text.tensors if tensor.name.startswith("v.")]
    model = recognize(file.parent)
    assert model.format.facts(model.path).parameters == facts_of(parent.model).parameters


def test_integers_of_decoder_and_tower_are_carried_over(tmp_path: Path) -> None:
    source = save_gguf_parent(tmp_path / "parent", "glm4v", vision_config=WIDE)
    parent = pack_decoder(source, tmp_path / "awq", **PACKING)
    file, output = export_gguf(parent, tmp_path / "out")
    tree = json.loads((parent.model / "config.json").read_bytes())
    expected = dict(read_dequantized(parent.model, tree))
    _, tensors = read_files(file.parent)
    kind, values = tensors["v.blk.0.attn_qkv.weight"]
    assert kind == "Q8_0"
    np.testing.assert_array_equal(
        values, expected["model.visual.blocks.0.attn.qkv.weight"].float().numpy()
    )
    assert output.summary["types"]["Q4_0"]["tensors"] == 3 * 6
    assert output.summary["projector"]["types"]["Q8_0"]["tensors"] == 2 * 5 + 4


def test_llamacpp_computes_images_as_torch_does(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from compressor.runtimes.llamacpp.model import LlamaCppModel
    from tests.support.mtmd import ImagePrompt
    from tests.unit.passes.export_gguf.test_in_llamacpp import load_class

    parent = save_gguf_parent(tmp_path / "parent", "glm4v")
    file, _ = export_gguf(parent, tmp_path / "out")
    pixels = np.random.default_rng(0).integers(0, 256, (112, 84, 3), dtype=np.uint8)
    model = LlamaCppModel(file, threads=1)
    text = "Hello <__media__> there"
    prompt = ImagePrompt(file.with_name("mmproj.gguf"), model, text, pixels)
    module: Any = load_class(parent.model)
    token = module.config.image_token_id
    ids = torch.tensor([prompt.tokens(token)])
    processor = Glm4vImageProcessorPil.from_pretrained(parent.model, size=SIZE)
    inputs = processor(images=[pixels], return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        logits = module(input_ids=ids, mm_token_type_ids=(ids == token).int(), **inputs).logits[
            0, -1
        ]
        features = module.model.get_image_features(**inputs)
    embeddings = torch.cat(list(features.pooler_output)).numpy()
    assert embeddings.shape == (12, 128)
    np.testing.assert_allclose(
        prompt.embeddings(128), embeddings, atol=0.01 * float(embeddings.std())
    )
    np.testing.assert_allclose(
        prompt.last_logits(), logits.numpy(), atol=0.015 * float(logits.std())
    )
    model.close()


def test_a_plan_refuses_towers_that_llamacpp_does_not_compute(tmp_path: Path) -> None:
    folder = save_gguf_parent(tmp_path / "parent", "glm4v").model
    tree = json.loads((folder / "config.json").read_bytes())
    tower = {**tree["vision_config"], "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps({**tree, "vision_config": tower}))
    with pytest.raises(RequirementError, match="`hidden_act: gelu` of the vision tower"):
        plan_gguf(folder)


def test_a_plan_refuses_checkpoints_that_lack_what_images_need(tmp_path: Path) -> None:
    folder = save_gguf_parent(tmp_path / "parent", "glm4v").model
    plan_gguf(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(RequirementError, match="no image processor states image_mean"):
        plan_gguf(folder)
    edit_tokenizer(folder, added_tokens=[])
    with pytest.raises(RequirementError, match=r"the tokenizer has no <\|begin_of_image\|>"):
        plan_gguf(folder)


def test_a_plan_lists_layers_of_the_tower_that_no_block_holds(tmp_path: Path) -> None:
    facts = facts_of(save_gguf_parent(tmp_path / "parent", "glm4v", vision_config=WIDE).model)
    fields = {**PACKING, "vision": {"bits": 8, "group_size": 32}, "group_size": 32}
    context = PlanContext({"parent": facts})
    config = AwqConfig.model_validate({"calibration": {"data": "text"}, **fields})
    planned = Awq().estimate(config, facts, context).model
    with pytest.raises(RequirementError, match=r"visual\.blocks\.\*\.attn\.qkv: 8 bits with zero"):
        ExportGguf().estimate(ExportGgufConfig(), planned, context)


def test_an_adapter_has_the_order_of_rows_of_its_model_file() -> None:
    from compressor.runtimes.llamacpp.row_order import rows_in_file

    assert rows_in_file("glm4", 2, 16, None) is None
    order = rows_in_file("glm4", 2, 16, 4)
    assert order is not None
    assert order.tolist() == [0, 2, 1, 3, 4, 5, 6, 7, 8, 10, 9, 11, 12, 13, 14, 15]
