"""Removing units without effect leaves outputs unchanged, and repair approximates the others."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.models.capabilities.cuttable_axes import Axis, Cut, CuttableAxes, replace_fields
from compressor.models.capabilities.unit_removal import remove_units
from passes.prune import repair
from passes.prune.allocation import group_axes
from passes.prune.repair import reconstruct_weights, rescale_norms
from passes.prune.size_search import pruned_fields
from tests.support.pruning import silence
from tests.support.tiny_models import (
    CHECKPOINT,
    CLASSIFIER,
    DEEP,
    MULTI_QUERY,
    OTHER,
    PHONE,
    build_model,
    random_inputs,
    remove_norm_epsilon,
)

TINY_LLAMA = CHECKPOINT.presets["tiny-llama"]
DEEP_CNN = CLASSIFIER.presets["small"].model_copy(
    update={
        "vision_blocks": tuple(
            CLASSIFIER.presets["small"].vision_blocks[index] for index in (0, 1, 1, 1, 2, 3, 3)
        )
    }
)
"""A network whose stages have three and two residual blocks."""
PRUNED = [
    (PHONE, DEEP),
    (PHONE, OTHER),
    (PHONE, MULTI_QUERY),
    (CLASSIFIER, CLASSIFIER.presets["small"]),
    (CLASSIFIER, DEEP_CNN),
    *((CHECKPOINT, config) for config in CHECKPOINT.presets.values()),
]


def random_tokens(batch):
    generator = torch.Generator().manual_seed(batch)
    return {"input_ids": torch.randint(0, 490, (batch, 7), generator=generator)}


def axes_of(config, kind):
    axes = CHECKPOINT.capability(CuttableAxes, config).axes
    return [axis for axis in axes if axis.kind == kind]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_removing_units_without_effect_leaves_the_output_unchanged(data):
    family, config = data.draw(st.sampled_from(PRUNED))
    model = build_model(family, config)
    # Layers with a gate or a rectifier are never exactly the identity. Without images nothing goes
    # through a vision tower.
    axes = [
        axis
        for axis in family.capability(CuttableAxes, config).axes
        if axis.stack not in {"fusion.layers", "speech.residuals"}
    ]
    scores = {axis.name: np.ones(axis.units) for axis in axes}
    kept_units, sizes = {}, {}
    widths = group_axes(axes, scores, multiple=8, min_keep=0.1)
    for width in widths:
        # Llama's class requires a multiple of its heads. With few units, some token would have
        # almost nothing to normalise.
        step = 16 if width.label == "hidden" else 1
        count = width.units // step
        size = sizes[width.label] = step * data.draw(st.integers(-(-count // 4), count))
        for axis in width.axes if size < width.units else ():
            order = torch.randperm(axis.units, generator=torch.Generator().manual_seed(size))
            units = width.axis_units(axis, size)
            kept_units[axis.name] = order[:units].sort().values
            silence(model, axis, order[units:])
    kept_lists = {name: units.tolist() for name, units in kept_units.items()}
    smaller_config = replace_fields(config, pruned_fields(widths, sizes, config, kept_lists))
    smaller = remove_norm_epsilon(family.build(smaller_config).eval())
    batch = random_tokens(4) if family is CHECKPOINT else random_inputs(family, config, 4)

    def loss(batch):
        return model(**batch)["logits"].sum()

    norms = rescale_norms(model, axes, kept_units, [batch], loss)
    weights = dict(reconstruct_weights(model, axes, kept_units, lambda: [batch], loss))
    with torch.no_grad():
        expected = model(**batch)["logits"]
        for state in (model.state_dict() | norms, model.state_dict() | norms | weights):
            smaller.load_state_dict(dict(remove_units(state, axes, kept_units)))
            torch.testing.assert_close(smaller(**batch)["logits"], expected, atol=1e-5, rtol=1e-4)


def test_kept_units_reproduce_the_outputs_of_removed_ones():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 3))
    with torch.no_grad():  # Two units are multiples of two others.
        model[0].weight[4:], model[0].bias[4:] = 2 * model[0].weight[:2], 2 * model[0].bias[:2]
    cuts = (Cut("0.weight", 0), Cut("0.bias", 0), Cut("1.weight", 1))
    axes = [Axis("inner", "ffn", 6, cuts, ((("ffn",), 1),))]
    batches = [{"x": torch.randn(400, 6)}]
    kept_units = {"inner": torch.arange(4)}
    weights = dict(
        reconstruct_weights(
            model, axes, kept_units, lambda: batches, lambda batch: model(batch["x"]).sum()
        )
    )
    smaller = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
    x = torch.randn(50, 6)

    def error(state):
        smaller.load_state_dict(dict(remove_units(state, axes, kept_units)))
        return (smaller(x) - model(x)).norm()

    assert error(model.state_dict() | weights) < 0.1 * error(model.state_dict())


def test_large_gram_matrices_are_computed_in_groups_of_layers(monkeypatch):
    model = CHECKPOINT.build(TINY_LLAMA).eval()
    axes = axes_of(TINY_LLAMA, "ffn")
    kept_units = {axis.name: torch.arange(axis.units // 2) for axis in axes}
    runs = []

    def batches():
        runs.append(1)
        return [random_tokens(2)]

    def reconstruct():
        def loss(batch):
            return model(**batch)["logits"].sum()

        return dict(reconstruct_weights(model, axes, kept_units, batches, loss))

    at_once = reconstruct()
    assert len(runs) == 1
    monkeypatch.setattr(repair, "_GRAM_BYTES", 4 * axes[0].units ** 2)
    in_groups = reconstruct()
    assert len(runs) == 1 + len(axes) == 1 + len(at_once)
    for name, weight in at_once.items():
        assert torch.equal(in_groups[name], weight), name


def test_tied_weights_are_not_changed():
    model = CHECKPOINT.build(TINY_LLAMA).eval()
    axes = axes_of(TINY_LLAMA, "hidden")
    kept_units = {axes[0].name: torch.arange(48)}
    weights = dict(
        reconstruct_weights(
            model,
            axes,
            kept_units,
            lambda: [random_tokens(2)],
            lambda batch: model(**batch)["logits"].sum(),
        )
    )
    assert "model.layers.0.self_attn.q_proj.weight" in weights
    assert "lm_head.weight" not in weights
