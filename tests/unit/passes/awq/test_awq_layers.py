"""A packed checkpoint beside its parent, layer by layer and tensor by tensor."""

from compressor.analysis.layerwise import compare_layers
from compressor.analysis.tensors import tensor_differences
from compressor.runtimes.layers import open_layers
from tests.unit.passes.awq.test_awq import TOKENS, packed, parent_in


def test_every_packed_layer_adds_some_and_no_other_does(tmp_path):
    parent = parent_in(tmp_path / "parent")
    folder, _ = packed(parent, tmp_path / "awq")
    found = compare_layers(
        open_layers("torch", parent.model, 1),
        open_layers("packed", folder, 1),
        {"input_ids": TOKENS[:4]},
    )
    added = {one.layer: one.added for one in found.layers}
    linear = {name for name in added if "proj" in name}
    assert len(linear) >= 14
    assert all(added[name] for name in linear)
    assert added["model.embed_tokens"] < 1e-6, "floats of 16 bits"
    pairs = {
        one.name: one for one in tensor_differences(("torch", parent.model), ("packed", folder))
    }
    assert pairs["model.layers.0.mlp.down_proj.weight"].snr_db > 5, (
        "scales went into the norm before it"
    )
    assert pairs["model.embed_tokens.weight"].snr_db > 70
