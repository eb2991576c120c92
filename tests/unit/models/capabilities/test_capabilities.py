"""Lookup of capabilities: provided by a family, derived, discovered, or missing."""

import json
import subprocess
import sys

import pytest
import torch

from compressor.config.discovery import FAMILIES, load, names
from compressor.errors import RequirementError
from compressor.models.architecture import Architecture
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.feature_taps import FeatureTaps
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.capabilities.quantizable_layers import QuantizableLayers
from compressor.models.capabilities.signature import Signature
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.capabilities.valid_positions import ValidPositions
from compressor.models.checkpoint.description import read_description
from compressor.models.facts import ModelFacts, facts_of
from compressor.models.missing import Missing, missing
from tests.support.tiny_models import CLASSIFIER, PHONE, build_model, random_inputs

SENTENCES, CHECKPOINTS = load(FAMILIES, "sentence-encoder"), load(FAMILIES, "transformers")
ALL = (
    CachedGeneration,
    CuttableAxes,
    FeatureTaps,
    LinearGroups,
    QuantizableLayers,
    Signature,
    TrainingHeads,
    ValidPositions,
)


@pytest.mark.parametrize(
    ("family", "preset", "lacking"),
    [
        (PHONE, "tiny", {CachedGeneration}),
        (CLASSIFIER, "tiny", {CachedGeneration}),
        (SENTENCES, "tiny", {CachedGeneration, CuttableAxes, FeatureTaps, TrainingHeads}),
        (CHECKPOINTS, "tiny-llama", {FeatureTaps}),
    ],
)
def test_each_family_lacks_only_what_does_not_apply(family, preset, lacking):
    config = family.presets[preset]
    expected = {Missing(need.label, need.remedy) for need in lacking}
    assert set(missing(Architecture(family, config), ALL)) == expected
    for need in lacking:
        with pytest.raises(RequirementError, match=f"has no {need.label}"):
            family.require(need, config)


def test_heads_and_valid_positions_follow_from_the_signature():
    logits = torch.randn(2, 3)
    heads = CLASSIFIER.require(TrainingHeads, CLASSIFIER.presets["tiny"])
    assert heads.logits(torch.nn.Identity(), {"logits": logits}) == {"label": logits}
    batch = {"attention_mask": torch.tensor([[1, 1, 0]])}
    masked = SENTENCES.require(ValidPositions, SENTENCES.presets["tiny"])
    assert masked.mask(batch).valid_BT.tolist() == [[True, True, False]]
    assert masked.mask({}) is None
    assert PHONE.require(ValidPositions, PHONE.presets["tiny"]).mask(batch) is None


def test_quantizable_layers_are_discovered_from_a_loaded_module_only():
    config = CLASSIFIER.presets["tiny"]
    assert CLASSIFIER.capability(QuantizableLayers, config) is None
    model = LoadedModel(build_model(CLASSIFIER, config), random_inputs(CLASSIFIER, config, 2))
    layers = CLASSIFIER.require(QuantizableLayers, config, model)
    assert "head" in layers.names
    assert layers.contexts(layers.names).keys() == set(layers.names)


def test_generation_describes_the_cache_and_the_images():
    text = CHECKPOINTS.require(CachedGeneration, CHECKPOINTS.presets["tiny-llama"])
    assert (text.context_length, text.layers, text.key_heads, text.head_width) == (512, 3, 2, 16)
    assert text.cache_bytes(10, 4) == 2 * 3 * 2 * 16 * 10 * 4
    assert text.image_inputs == ()
    images = CHECKPOINTS.require(CachedGeneration, CHECKPOINTS.presets["tiny-glm4v"])
    assert [spec.name for spec in images.image_inputs][-1] == "image_grid_thw"


def test_facts_and_descriptions_look_capabilities_up(tmp_path):
    config = CLASSIFIER.presets["tiny"]
    CLASSIFIER.save(build_model(CLASSIFIER, config), config, tmp_path)
    axes = CLASSIFIER.require(CuttableAxes, config)
    assert facts_of(tmp_path).capability(CuttableAxes) == axes
    assert read_description(tmp_path).require(CuttableAxes) == axes
    assert ModelFacts(family=CLASSIFIER.name).capability(CuttableAxes) is None
    assert ModelFacts().capability(CuttableAxes) is None


def test_passes_need_capabilities_by_their_config():
    awq, prune = load("autoglm_compress.passes", "awq"), load("autoglm_compress.passes", "prune")
    tree = {"calibration": {"data": "train"}}
    nearest = tree | {"refine": "none", "scaling": False, "drift": 0}
    needs = [
        awq.needs(awq.Config.model_validate_json(json.dumps(fields))) for fields in (tree, nearest)
    ]
    assert needs == [(LinearGroups,), ()]
    config = prune.Config.model_validate_json(
        '{"target": {"params": "50%"}, "importance": "magnitude"}'
    )
    assert prune.needs(config) == (CuttableAxes,)


def test_looking_up_what_passes_need_imports_no_torch():
    code = (
        "import sys\n"
        "from compressor.config.discovery import FAMILIES, PASSES, load, names\n"
        "from compressor.models.architecture import Architecture\n"
        "from compressor.models.missing import missing\n"
        "passes = [load(PASSES, name) for name in names(PASSES)]\n"
        "for family in (load(FAMILIES, name) for name in names(FAMILIES) if name != 'tiny'):\n"
        "    for config in family.presets.values():\n"
        "        for pass_ in passes:\n"
        "            missing(Architecture(family, config), pass_.capabilities)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_installed_family_has_a_signature():
    for family in (load(FAMILIES, name) for name in names(FAMILIES)):
        for config in family.presets.values():
            signature = family.require(Signature, config)
            assert signature.inputs
            assert signature.outputs
