"""Kinds of axes that a class may have, before it is loaded."""

import pytest

from compressor.errors import RequirementError
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.family import Transformers
from compressor.models.families.transformers.generic.possible_axes import possible_axis_kinds
from passes.prune.axes import check_applicable
from passes.prune.config import PruneConfig
from tests.support.encoder_classes import CLASSES

_DEFAULT = ("channels", "ffn", "heads")
_BLOOM = {
    "model_type": "bloom",
    "architectures": ["BloomForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "n_layer": 2,
    "n_head": 4,
}


def _tree(name):
    return CLASSES[name].config().to_dict() | {"architectures": [CLASSES[name].class_name]}


@pytest.mark.parametrize(
    ("tree", "kinds"),
    [
        (_tree("convnext"), set()),
        (_BLOOM, {"layers"}),
        (_tree("bert"), None),  # its masks read values
    ],
)
def test_a_class_whose_config_counts_no_units_is_known_before_a_run(tree, kinds):
    assert possible_axis_kinds(tree, _DEFAULT) == kinds


def test_one_wanted_kind_is_enough():
    assert "ffn" in (possible_axis_kinds(_tree("vit"), ["ffn"]) or ())


def test_prune_is_refused_when_planning():
    config = PruneConfig.model_validate({"target": {"params": 0.9}, "importance": "magnitude"})
    architecture = CheckpointConfig.model_validate(_BLOOM)
    with pytest.raises(RequirementError, match="no channels, ffn, heads to cut") as caught:
        check_applicable(config, Transformers(), architecture)
    assert "its axes are layers" in str(caught.value)
    layers = config.model_copy(update={"axes": ("layers",)})
    check_applicable(layers, Transformers(), architecture)
