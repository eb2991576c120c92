"""Cutting what has no effect changes nothing; choosing meets the target."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import Axis, Cut, CuttableAxes, replace_fields
from passes.prune import repair
from passes.prune.allocation import allocate, widths_of
from passes.prune.depth import layers_by_cosine, layers_by_loss, layers_by_taylor
from passes.prune.importance import activation, entropy, gradient, magnitude, taylor
from passes.prune.latency import LatencyTable, Operator, latency_of, operators_of, resized
from passes.prune.memory import gradients_as_they_come, recomputed
from passes.prune.repair import least_squares, norm_scales
from passes.prune.sizes import fields_of
from passes.prune.step import Prune, PruneConfig
from passes.prune.surgery import without
from tests.support.pruning import widths_from_scores
from tests.support.tiny_models import (
    CHECKPOINT,
    CLASSIFIER,
    PHONE,
    build_model,
    remove_norm_epsilon,
)
from tests.unit.models.capabilities.test_cuttable_axes import CASES, DEEP, MULTI_QUERY, OTHER
from tests.unit.models.test_families import inputs


def silence(model, axis, units):
    """Zero the columns that read these units, or what writes them where a norm is between: they then have no effect."""
    state = model.state_dict()
    normed = any(cut.norm for cut in axis.cuts)
    for cut in axis.cuts:
        if not cut.norm and (normed or cut.reads):
            rows = (
                state[cut.tensor]
                .movedim(cut.dim, 0)
                .unflatten(0, (cut.segments, axis.units, cut.block))
            )
            rows[:, units] = 0
    for number in axis.members(units.tolist()) if axis.stack else []:
        for last in LAST:
            for name in (
                f"{axis.stack}.{number}.{last}",
                f"{axis.stack}.{number}.attention.{last}",
            ):
                if name in state:
                    state[name].zero_()


LAST = (
    "out.weight",
    "out.bias",
    "down.weight",
    "down.bias",
    "ffn.down.weight",
    "self_attn.o_proj.weight",
    "mlp.down_proj.weight",
    "project_norm.weight",
    "project_norm.bias",
)
"""What the sublayers of a layer, or a residual block, end with: at zero, it hands on what it was given."""


DEEP_CNN = CLASSIFIER.presets["small"].model_copy(
    update={
        "vision_blocks": tuple(
            CLASSIFIER.presets["small"].vision_blocks[index] for index in (0, 1, 1, 1, 2, 3, 3)
        )
    }
)
"""With stages of three and of two residual blocks."""
PRUNED = [
    (PHONE, DEEP),
    (PHONE, OTHER),
    (PHONE, MULTI_QUERY),
    (CLASSIFIER, CLASSIFIER.presets["small"]),
    (CLASSIFIER, DEEP_CNN),
    *((CHECKPOINT, config) for config in CHECKPOINT.presets.values()),
]


def sample(family, config, batch):
    if family is CHECKPOINT:
        return {
            "input_ids": torch.randint(
                0, 490, (batch, 7), generator=torch.Generator().manual_seed(batch)
            )
        }
    return inputs(family, config, batch)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_units_without_effect_can_go_and_the_output_stays(data):
    family, config = data.draw(st.sampled_from(PRUNED))
    model = build_model(family, config)
    # A gate and a rectifier are never quite the identity; without images nothing goes through a vision tower.
    axes = [
        axis
        for axis in family.capability(CuttableAxes, config).axes
        if axis.stack not in {"fusion.layers", "speech.residuals"}
    ]
    scores = {axis.name: np.ones(axis.units) for axis in axes}
    kept, sizes = {}, {}
    widths = widths_of(axes, scores, multiple=8, min_keep=0.1)
    for width in widths:
        step = 16 if width.label == "hidden" else 1  # Llama's class wants a multiple of its heads
        count = (
            width.units // step
        )  # one unit alone would leave some token with next to nothing to normalise
        left = sizes[width.label] = step * data.draw(st.integers(-(-count // 4), count))
        for axis in width.axes if left < width.units else ():
            order = torch.randperm(axis.units, generator=torch.Generator().manual_seed(left))
            units = width.of(axis, left)
            kept[axis.name] = order[:units].sort().values
            silence(model, axis, order[units:])
    chosen = {name: units.tolist() for name, units in kept.items()}
    smaller = remove_norm_epsilon(
        family.build(replace_fields(config, fields_of(widths, sizes, config, chosen))).eval()
    )
    batch = sample(family, config, 4)

    def run(one):
        return model(**one)["logits"].sum()

    norms = norm_scales(model, axes, kept, [batch], run)
    solved = dict(least_squares(model, axes, kept, lambda: [batch], run))
    with torch.no_grad():
        wanted = model(**batch)["logits"]
        for state in (model.state_dict() | norms, model.state_dict() | norms | solved):
            smaller.load_state_dict(dict(without(state, axes, kept)))
            torch.testing.assert_close(smaller(**batch)["logits"], wanted, atol=1e-5, rtol=1e-4)


def test_what_stays_answers_for_what_goes():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 3))
    with torch.no_grad():  # two units say what two others say
        model[0].weight[4:], model[0].bias[4:] = 2 * model[0].weight[:2], 2 * model[0].bias[:2]
    axis = Axis(
        "inner",
        "ffn",
        6,
        (Cut("0.weight", 0), Cut("0.bias", 0), Cut("1.weight", 1)),
        ((("ffn",), 1),),
    )
    batches = [{"x": torch.randn(400, 6)}]
    kept = {"inner": torch.arange(4)}
    solved = dict(
        least_squares(model, [axis], kept, lambda: batches, lambda batch: model(batch["x"]).sum())
    )
    smaller = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
    x = torch.randn(50, 6)

    def error(state):
        smaller.load_state_dict(dict(without(state, [axis], kept)))
        return (smaller(x) - model(x)).norm()

    assert error(model.state_dict() | solved) < 0.1 * error(model.state_dict())


def test_layers_take_turns_where_their_gram_matrices_are_large(monkeypatch):
    model = CHECKPOINT.build(CHECKPOINT.presets["tiny-llama"]).eval()
    axes = [
        axis
        for axis in CHECKPOINT.capability(CuttableAxes, CHECKPOINT.presets["tiny-llama"]).axes
        if axis.kind == "ffn"
    ]
    kept = {axis.name: torch.arange(axis.units // 2) for axis in axes}
    passes = []

    def batches():
        passes.append(1)
        return [sample(CHECKPOINT, None, 2)]

    def solved():
        return dict(least_squares(model, axes, kept, batches, lambda b: model(**b)["logits"].sum()))

    at_once = solved()
    assert len(passes) == 1
    monkeypatch.setattr(repair, "_GRAM_BYTES", 4 * axes[0].units ** 2)
    in_turns = solved()
    assert len(passes) == 1 + len(axes) == 1 + len(at_once)
    for name, weight in at_once.items():
        assert torch.equal(in_turns[name], weight), name


def test_scoring_holds_the_gradient_of_one_weight_and_the_activations_of_one_layer():
    config = CHECKPOINT.presets["tiny-llama"]
    model = CHECKPOINT.build(config).eval()
    axes = CHECKPOINT.capability(CuttableAxes, config).axes
    batch = sample(CHECKPOINT, None, 2)
    kept_bytes = []

    def loss(one):
        kept_bytes.append(0)
        with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
            logits = model(**one)["logits"]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), one["input_ids"].flatten())

    def packed(tensor):
        kept_bytes[-1] += tensor.nbytes
        return tensor

    units = [axis for axis in axes if not axis.stack]
    whole = taylor(model, units, [batch], loss)
    loss(batch).backward()  # what a training leaves behind does not count
    kept_bytes.pop()
    with recomputed(model, ["model.layers"]):
        recomputed_scores = taylor(model, units, [batch], loss)
    assert kept_bytes[1] < 0.5 * kept_bytes[0]
    for name, score in whole.items():
        assert torch.equal(recomputed_scores[name], score), name
    assert "forward" not in vars(model.model.layers[0])

    held = []
    weights = [layer.mlp.down_proj.weight for layer in model.model.layers]
    with gradients_as_they_come(
        model, weights, lambda *_: held.append([w.grad is not None for w in weights])
    ):
        loss(batch).backward()
    assert held == [[False] * len(weights)] * len(weights)
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
    )


def test_weights_that_something_else_uses_are_left():
    model = CHECKPOINT.build(CHECKPOINT.presets["tiny-llama"]).eval()
    axes = [
        axis
        for axis in CHECKPOINT.capability(CuttableAxes, CHECKPOINT.presets["tiny-llama"]).axes
        if axis.kind == "hidden"
    ]
    batch = sample(CHECKPOINT, None, 2)
    solved = dict(
        least_squares(
            model,
            axes,
            {axes[0].name: torch.arange(48)},
            lambda: [batch],
            lambda b: model(**b)["logits"].sum(),
        )
    )
    assert "model.layers.0.self_attn.q_proj.weight" in solved
    assert "lm_head.weight" not in solved


@pytest.mark.parametrize("score", [activation, taylor])
@pytest.mark.parametrize(("family", "config"), CASES[:4])
def test_a_unit_without_effect_has_no_importance(family, config, score):
    model = build_model(family, config)
    axes = [axis for axis in family.capability(CuttableAxes, config).axes if not axis.stack]
    for axis in axes:
        silence(model, axis, torch.tensor([axis.units - 1]))
    batch = inputs(family, config, 6) | {"label": torch.arange(6) % 10}
    names = [spec.name for spec in family.signature(config).inputs]

    def loss(one):
        return torch.nn.functional.cross_entropy(
            model(**{name: one[name] for name in names})["logits"], one["label"]
        )

    scores = score(model, axes, [batch, batch], loss)
    for axis in axes:
        assert scores[axis.name][-1] == 0
        assert (scores[axis.name] >= 0).all()
        if axis.units > 1:
            assert scores[axis.name].max() > 0, axis.name


@pytest.mark.parametrize("score", [layers_by_cosine, layers_by_loss, layers_by_taylor])
def test_a_layer_that_hands_on_what_it_gets_has_no_importance(score):
    model = build_model(PHONE, OTHER)
    axes = [
        axis
        for axis in PHONE.capability(CuttableAxes, OTHER).axes
        if axis.stack in {"vision.layers", "speech.layers", "text_encoder.layers"}
    ]
    assert [axis.units for axis in axes] == [2, 2, 2]
    for axis in axes:
        silence(model, axis, torch.tensor([1]))
    batch = inputs(PHONE, OTHER, 6) | {"label": torch.arange(6) % 10}
    names = [spec.name for spec in PHONE.signature(OTHER).inputs]

    def loss(one):
        return torch.nn.functional.cross_entropy(
            model(**{name: one[name] for name in names})["logits"], one["label"]
        )

    samples = (lambda _: [batch]) if score is layers_by_loss else [batch]
    for name, scores in score(model, axes, samples, loss).items():
        assert scores[1] == pytest.approx(0, abs=1e-12), name
        assert score is layers_by_loss or scores[0] > 0, name


def test_a_channel_that_always_says_the_same_says_nothing():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 0.0, 1.0])))
    axis = Axis("inner", "ffn", 3, (Cut("0.weight", 0), Cut("1.weight", 1)), ((("ffn",), 1),))
    torch.manual_seed(0)
    spread = torch.rand(4000, 3)
    spread[:, 2] = (spread[:, 2] > 0.5).float()  # one bit
    scores = entropy(model, [axis], [{"x": spread}], lambda batch: model(batch["x"]).sum())["inner"]
    assert scores[1] == 0
    assert (scores[0] / scores[2]).item() == pytest.approx(np.log(32) / np.log(2), rel=0.02)


def test_gradient_is_the_norm_of_the_columns_gradient():
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 1, bias=False)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([3.0, 0.0, 1.0])))
    axis = Axis("inner", "ffn", 3, (Cut("0.weight", 0), Cut("1.weight", 1)), ((("ffn",), 1),))
    scores = gradient(
        model, [axis], [{"x": torch.ones(1, 3)}], lambda batch: model(batch["x"]).sum()
    )["inner"]
    torch.testing.assert_close(scores, torch.tensor([0.75, 0.0, 0.25], dtype=torch.float64))


def test_magnitude_is_the_norm_of_what_holds_the_unit():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))
        model[1].weight.copy_(torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    axis = Axis(
        "inner",
        "ffn",
        3,
        (Cut("0.weight", 0), Cut("0.bias", 0), Cut("1.weight", 1)),
        ((("ffn",), 1),),
    )
    np.testing.assert_allclose(magnitude(model, [axis])["inner"], [5 / 6, 0, 1 / 6])


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=12), min_size=1, max_size=4),
    st.floats(0.3, 1.0),
)
def test_the_target_is_met_or_the_reach_is_told(scores, ratio):
    found = widths_from_scores(**{f"w{number}": values for number, values in enumerate(scores)})
    whole = sum(width.units for width in found)
    least = sum(min(width.least, width.units) for width in found)
    try:
        kept = allocate(found, lambda sizes: float(sum(sizes.values())), ratio * whole, "units")
    except RequirementError:
        assert least > ratio * whole
        return
    assert sum(kept.values()) <= ratio * whole
    for width in found:
        assert kept[width.label] == width.units or kept[width.label] % 2 == 0
        assert width.least <= kept[width.label] <= width.units


def test_what_matters_least_for_what_it_saves_goes_first():
    found = widths_from_scores(cheap=[1.0] * 8, dear=[1.0] * 8)
    kept = allocate(found, lambda sizes: sizes["cheap"] + 10.0 * sizes["dear"], 70, "units")
    assert kept == {"cheap": 8, "dear": 6}
    found = widths_from_scores(dull=[0.1] * 8, keen=[9.0] * 8)
    assert allocate(found, lambda sizes: float(sum(sizes.values())), 12, "units") == {
        "dull": 4,
        "keen": 8,
    }


def test_an_operator_follows_its_weight():
    convolution = Operator("conv2d", (1, 8, 5, 5), (16, 8, 3, 3), 2, 1)
    assert resized(convolution, (12, 4, 3, 3)) == Operator(
        "conv2d", (1, 4, 5, 5), (12, 4, 3, 3), 2, 1
    )
    depthwise = Operator("conv2d", (1, 8, 5, 5), (8, 1, 3, 3), 1, 1, 8)
    assert resized(depthwise, (6, 1, 3, 3)) == Operator(
        "conv2d", (1, 6, 5, 5), (6, 1, 3, 3), 1, 1, 6
    )
    assert resized(Operator("linear", (2, 7, 8), (16, 8)), (16, 4)) == Operator(
        "linear", (2, 7, 4), (16, 4)
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_operators_are_timed_once_and_kept(runtime, tmp_path, monkeypatch):
    table = LatencyTable(runtime, 1, 3, tmp_path, print)
    large, small = (
        Operator("conv2d", (1, 64, 40, 40), (64, 64, 3, 3), 1, 1),
        Operator("linear", (1, 4), (4, 4)),
    )
    assert table.milliseconds(large) > table.milliseconds(small) >= 0
    assert table.milliseconds(Operator("conv1d", (1, 4, 9), (4, 1, 3), 1, 1, 4)) >= 0
    table.save()
    again = LatencyTable(runtime, 1, 3, tmp_path, print)
    monkeypatch.setattr("passes.prune.latency.measured", None)
    assert again.milliseconds(large) == table.milliseconds(large)


@pytest.mark.parametrize(
    "content", ["", "{", '{"linear 1x1": "fast"}', '{"linear 1x1": -1}', "[1]"]
)
def test_a_damaged_table_is_told_and_measured_anew(content, tmp_path):
    notes = []
    table = LatencyTable("torch", 1, 3, tmp_path, notes.append)
    table.file.parent.mkdir()
    table.file.write_text(content)
    again = LatencyTable("torch", 1, 3, tmp_path, notes.append)
    assert again.milliseconds(Operator("linear", (1, 4), (4, 4))) >= 0
    again.save()
    LatencyTable("torch", 1, 3, tmp_path, notes.append)
    assert ["damaged" in note for note in notes] == [True]


def test_timing_in_torch_leaves_its_threads_as_they_were(tmp_path):
    before = torch.get_num_threads()
    LatencyTable("torch", before + 1, 3, tmp_path, print).milliseconds(
        Operator("linear", (1, 4), (4, 4))
    )
    assert torch.get_num_threads() == before


def test_the_id_knows_what_times_the_layers():
    def tools(**latency):
        fields = {"target": {"macs": 0.5}, "calibration": "train", **latency}
        return Prune().tools_for(PruneConfig.model_validate_json(json.dumps(fields)))

    assert tools() == tools(latency={"runtime": "torch"}) == ("torch", "numpy")
    assert tools(latency={}) == ("torch", "numpy", "onnxruntime")


def test_every_layer_that_an_axis_moves_is_timed():
    config = PHONE.presets["bed-teacher"]
    model = build_model(PHONE, config)
    found = operators_of(model, inputs(PHONE, config, 1))
    for axis in PHONE.capability(CuttableAxes, config).axes:
        assert all(cut.tensor in found for cut in axis.cuts if cut.reads), axis.name
    axes = PHONE.capability(CuttableAxes, config).axes
    scores = {axis.name: np.ones(axis.units) for axis in axes}
    widths_found = widths_of(axes, scores, multiple=8, min_keep=0.25)

    class Arithmetic:
        """One "millisecond" for each multiply-accumulate."""

        def milliseconds(self, operator):
            positions = np.prod(operator.input[2:]) / operator.stride ** (len(operator.input) - 2)
            if operator.kind == "linear":
                positions = np.prod(operator.input[:-1])
            return float(
                np.prod(operator.weight)
                * positions
                * operator.input[0] ** (operator.kind != "linear")
            )

    total = latency_of(found, widths_found, Arithmetic())
    whole = {width.label: width.units for width in widths_found}
    fields = {
        ("speech_width",): 48,
        ("ffn",): 64,
        ("vision_blocks", 2, "expanded"): 96,
        ("vision_blocks", 2, "squeezed"): 48,
    }
    smaller = replace_fields(config, fields)
    predicted = total(
        {**whole, "speech_width": 48, "ffn": 64, "vision_blocks.2.expanded": 96}
    ) / total(whole)
    assert predicted == pytest.approx(PHONE.macs(smaller) / PHONE.macs(config), abs=0.02)


def test_a_step_that_saves_nothing_is_passed_over():
    found = widths_from_scores(stubborn=[1.0] * 8)
    milliseconds = {8: 10.0, 6: 11.0, 4: 10.0, 2: 3.0}
    assert allocate(found, lambda sizes: milliseconds[sizes["stubborn"]], 5, "ms") == {
        "stubborn": 2
    }
