"""Null and absent fields of config.json are read as transformers reads them, or refused."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from compressor.models.families.transformers.expected_tensors import expected_shapes
from compressor.models.families.transformers.modules import build_on_meta
from tests.support.checkpoints import FAMILY, PRESETS

TOP = ("tie_word_embeddings", "dtype", "torch_dtype", "architectures", "quantization_config")
FIELDS = (
    *TOP,
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
    "mlp_bias",
    "rope_scaling",
    "rope_parameters",
    "rope_theta",
    "sliding_window",
    "layer_types",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "pad_token_id",
    "eos_token_id",
    "bos_token_id",
    "use_cache",
    "attention_dropout",
    "query_pre_attn_scalar",
    "max_window_layers",
    "use_sliding_window",
    "initializer_range",
)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("absent", [False, True])
def test_the_architecture_is_that_of_the_class(preset: str, field: str, absent: bool) -> None:
    tree = json.loads(json.dumps(FAMILY.presets[preset].tree))
    holder = tree if field in TOP else tree.get("text_config") or tree
    if absent:
        holder.pop(field, None)
    else:
        holder[field] = None
    try:
        config = FAMILY.Config.model_validate_json(json.dumps(tree))
    except ValidationError:
        return
    module = build_on_meta(config.tree)
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    assert expected_shapes(config.tree) == shapes
