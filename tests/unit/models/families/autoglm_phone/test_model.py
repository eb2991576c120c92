"""Properties of the phone model's parts."""

import pytest
import torch
from pydantic import ValidationError

from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.families.autoglm_phone.blocks import Attention, rotary_angles, rotate
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.models.families.autoglm_phone.fusion import GatedCrossAttention, late_interaction
from compressor.models.families.autoglm_phone.vision import tiles_from_screen
from passes.common.losses import hard_cross_entropy

FAMILY = AutoGLMPhone()
TINY = FAMILY.presets["tiny"]
HEADS = FAMILY.require(TrainingHeads, TINY)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FAMILY.build(TINY).eval()


def make_batch(rows):
    tokens, mel = torch.randint(1, 250, (rows, 12)), torch.randn(rows, 80, 32)
    tokens[::2], mel[1::2] = 0, 0
    return {
        "screen": torch.randint(0, 256, (rows, 3, 24, 24), dtype=torch.uint8),
        "tokens": tokens,
        "mel": mel,
        "label": torch.arange(rows) % 10,
        "concept": torch.arange(rows) % 4,
        "cell_concepts": torch.randint(0, 4, (rows, 9)),
    }


def forward(model, data):
    return model(data["screen"], data["tokens"], data["mel"])


@pytest.mark.parametrize("speech", ["mel-cnn", "wav2vec-bridge"])
def test_padding_does_not_change_the_logits(speech):
    model = FAMILY.build(FAMILY.slim(TINY, speech=speech)).eval()
    data = make_batch(4)
    longer = data | {
        "tokens": torch.nn.functional.pad(data["tokens"], (0, 7)),
        "mel": torch.nn.functional.pad(data["mel"], (0, 16)),
    }
    torch.testing.assert_close(forward(model, data)["logits"], forward(model, longer)["logits"])


def test_a_missing_command_is_masked(model):
    data = make_batch(2)
    data["tokens"][:], data["mel"][:] = data["tokens"][1], 0
    alone = forward(model, {name: tensor[:1] for name, tensor in data.items()})["logits"]
    torch.testing.assert_close(forward(model, data)["logits"][:1], alone)


def test_skipping_rows_in_training_does_not_change_the_logits(model):
    data = make_batch(6)
    expected = forward(model, data)["logits"]
    for module in model.modules():  # batch norms keep their evaluation statistics
        module.training = module is model
    torch.testing.assert_close(forward(model, data)["logits"], expected)


def test_each_cell_depends_on_its_own_tile_alone(model):
    data = make_batch(1)
    before = forward(model, data)["cells"]
    data["screen"][:, :, :8, 8:16] = 255 - data["screen"][:, :, :8, 8:16]
    changed = (forward(model, data)["cells"] - before).abs().amax(dim=-1)[0] > 1e-6
    assert changed.tolist() == [cell == 1 for cell in range(9)]


def test_tiles_are_row_major():
    screen = torch.arange(36).reshape(1, 1, 6, 6)
    assert tiles_from_screen(screen, 3)[:, 0, 0, 0].tolist() == [0, 2, 4, 12, 14, 16, 24, 26, 28]


def test_a_closed_gate_returns_the_query():
    layer = GatedCrossAttention(TINY)
    for weight in (layer.gate_out.weight, layer.ffn.down.weight):
        torch.nn.init.zeros_(weight)
    torch.nn.init.constant_(layer.gate_out.bias, -100.0)
    query = torch.randn(2, 1, 16)
    torch.testing.assert_close(layer(query, torch.randn(2, 9, 16)), query)
    torch.nn.init.constant_(layer.gate_out.bias, 100.0)
    context = torch.randn(2, 9, 16)
    attended = layer.attention(layer.query_norm(query), layer.context_norm(context))
    torch.testing.assert_close(layer(query, context), attended)


def test_the_decoder_is_causal(model):
    decoder, memory, answer = model.text_decoder, torch.randn(2, 3, 16), torch.randn(2, 4, 16)
    whole = decoder(answer, memory)
    torch.testing.assert_close(decoder(answer[:, :2], memory), whole[:, :2])
    changed = answer.clone()
    changed[:, 3] += 1
    torch.testing.assert_close(decoder(changed, memory)[:, :3], whole[:, :3])


def test_attention_agrees_with_torch():
    torch.manual_seed(0)
    attention, x = Attention(8, 2, 2, 4, bias=True), torch.randn(3, 5, 8)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(
            torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        )
        reference.in_proj_bias.copy_(
            torch.cat([attention.query.bias, attention.key.bias, attention.value.bias])
        )
        reference.out_proj.weight.copy_(attention.out.weight)
        reference.out_proj.bias.copy_(attention.out.bias)
    torch.testing.assert_close(attention(x, x), reference(x, x, x, need_weights=False)[0])


def test_rotary_scores_depend_on_distance_alone():
    torch.manual_seed(0)
    attention = Attention(8, 1, 1, 8, bias=False)
    x = torch.randn(1, 1, 8).expand(1, 6, 8)
    rotary = rotary_angles(6, 8, x)
    query, key = (rotate(layer(x)[:, None], *rotary) for layer in (attention.query, attention.key))
    scores = (query @ key.transpose(2, 3))[0, 0]
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1])


def test_heads_without_labels_have_no_loss(model):
    data = make_batch(8)
    heads = HEADS.logits(model, forward(model, data))
    assert set(hard_cross_entropy(heads, data)) == {"label", "concept", "cell_concepts"}
    del data["concept"], data["cell_concepts"]
    assert set(hard_cross_entropy(heads, data)) == {"label"}


def test_each_valid_position_has_concept_logits(model):
    data = make_batch(8)
    outputs = forward(model, data)
    heads = HEADS.logits(model, outputs)
    valid = (data["tokens"] != 0).sum() + (data["mel"][:, 0, ::8].abs() > 0).sum()
    assert heads["position_concepts"].shape == (valid, TINY.concepts)
    assert heads["concept"].shape == (8, TINY.concepts)
    assert heads["cell_concepts"].shape == (8, 9, TINY.concepts)


def test_late_interaction_follows_the_best_valid_position():
    axes = torch.eye(4)
    command = torch.stack([axes[[3, 1, 3]], axes[[2, 3, 3]]])
    valid = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    scores = late_interaction(command * valid[:, :, None], axes, valid, 0.07)
    assert scores[0].argsort(descending=True)[:2].tolist() == [3, 1]
    torch.testing.assert_close(scores[1], axes[2] / 0.07)
    per_command = late_interaction(command, axes.expand(2, 4, 4), valid, 0.07)
    torch.testing.assert_close(per_command, late_interaction(command, axes, valid, 0.07))


@pytest.mark.parametrize(("commands", "screens"), [(6, 2), (5, 2), (4, 1), (3, 3)])
def test_consecutive_commands_can_share_a_screen(model, commands, screens):
    data = make_batch(commands)
    shared = data | {"screen": data["screen"][:screens]}
    repeats = -(-commands // screens)
    separate = data | {"screen": shared["screen"].repeat_interleave(repeats, dim=0)[:commands]}
    torch.testing.assert_close(forward(model, shared)["logits"], forward(model, separate)["logits"])
    assert forward(model, shared)["cells"].shape[0] == screens


def test_the_model_learns_a_batch(model):
    model.train()
    data = make_batch(16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = hard_cross_entropy(HEADS.logits(model, forward(model, data)), data)["label"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        ({"screen_size": 25}, "not divisible by grid"),
        ({"key_heads": 3}, "not divisible by key_heads"),
        ({"head_width": 7}, "is odd"),
        ({"vision": "vit-lite", "vision_patch": 5}, "does not divide"),
        (
            {
                "vision_blocks": [
                    {"kernel": 2, "expanded": 4, "out": 4, "stride": 1, "squeeze": False}
                ]
            },
            "must be odd",
        ),
        ({"hiden": 3}, "hiden"),
        ({"hidden": "7"}, "hidden"),
    ],
)
def test_invalid_configs_are_refused(dimensions, message):
    with pytest.raises(ValidationError, match=message):
        FAMILY.slim(TINY, **dimensions)
