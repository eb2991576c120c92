"""The ``align`` pass: encoders of queries and passages, models of two kinds, and refusals."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from calibration.sources.arrays import ArrayDataset
from compressor.data.contract import DataFacts, InputFacts
from compressor.engine.contract import PassContext, PlanContext
from compressor.errors import ConfigError, DataError, RequirementError
from compressor.evaluation.accuracy import measure_accuracy
from compressor.evaluation.records import AccuracyConfig
from compressor.models.architecture import Architecture
from compressor.models.facts import ModelFacts, facts_of, planned_facts
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.runtimes.formats import recognize
from passes.align.config import AlignConfig
from passes.align.step import Align
from passes.common import training
from tests.support.encoder_classes import CLASSES, TinyClass
from tests.support.further_encoder_classes import FURTHER_CLASSES
from tests.support.pretended_gpu import pretended_gpu
from tests.support.training import Killed

PAIRS, IGNORED = 24, -100
TRAINING = {"steps": 40, "batch_size": 8, "learning_rate": 0.01}
WEIGHTS = "model.safetensors"


def text_pairs(pairs=PAIRS):
    """Return passages, each followed by its query, which shares no token with it."""
    rng = np.random.default_rng(0)
    passages = rng.integers(5, 50, (pairs, 6))
    tokens = np.stack([passages, passages[:, ::-1] + 45], axis=1).reshape(-1, 6)
    labels = np.full(2 * pairs, IGNORED)
    labels[1::2] = np.arange(0, 2 * pairs, 2)
    arrays = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "label": labels}
    return ArrayDataset(arrays, ("input_ids", "attention_mask"), "label")


def captioned_images(count=12, *, has_types=False):
    """Return images of one colour with captions; each image has two."""
    rng = np.random.default_rng(1)
    images = np.repeat(rng.normal(size=(count, 3, 1, 1)), 2, axis=0) * np.ones((1, 1, 32, 32))
    tokens = rng.integers(5, 90, (2 * count, 6))
    tokens[:, -1] = 95
    arrays = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    if has_types:
        arrays["token_type_ids"] = np.zeros_like(tokens)
    arrays["pixel_values"] = images.astype(np.float32)
    return ArrayDataset(arrays | {"label": np.arange(2 * count) // 2 * 2}, tuple(arrays), "label")


DATA = {
    "texts": text_pairs(),
    "images": captioned_images(),
    "typed": captioned_images(has_types=True),
    "one": text_pairs(1),
    "unlabelled": ArrayDataset({"input_ids": np.zeros((4, 6), np.int64)}, ("input_ids",)),
}


def create_context(folder, notes=None, artifacts=None, device="cpu"):
    folder.mkdir(parents=True, exist_ok=True)
    return PassContext(
        artifacts=artifacts or {},
        data=DATA.__getitem__,
        work=folder,
        seed=0,
        threads=1,
        device=device,
        artifact_id="ab" * 32,
        progress=lambda *_: None,
        note=[].append if notes is None else notes.append,
    )


def config_of(fields):
    return AlignConfig.model_validate_json(json.dumps(fields))


def artifact(folder):
    return SimpleNamespace(model=folder)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    family, folder = SentenceEncoder(), tmp_path_factory.mktemp("sentences")
    torch.manual_seed(0)
    family.save(family.build(family.presets["tiny"]), family.presets["tiny"], folder)
    return artifact(folder)


def saved_class(name, folder):
    case = CLASSES[name]
    case.build().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return artifact(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return saved_class("clip", tmp_path_factory.mktemp("clip"))


def run(parent, folder, notes=None, artifacts=None, device="cpu", **fields):
    data = fields.pop("data", "texts")
    config = config_of({"train": data, "validation": data, "training": TRAINING, **fields})
    out = folder / "out"
    out.mkdir(parents=True)
    context = create_context(folder / "work", notes, artifacts, device)
    Align().requires(config, parent, context)
    summary = Align().run(config, parent, out, context).summary
    Align().ensures(config, parent, out, context)
    return out, summary


def measured(model, data, *metrics):
    config = AccuracyConfig(data=data, metrics=metrics, bootstrap=0)
    with recognize(model).open_session(1) as session:
        report = measure_accuracy(session, DATA[data], config, lambda *_: None)
    return {metric.name: metric.value for metric in report.metrics}


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.1},
        {"chunk_size": 3, "learn_temperature": True},
        {"loss": "sigmoid", "training": TRAINING | {"ema_decay": 0.9}},
    ],
    ids=str,
)
def test_a_sentence_encoder_learns_pairs(sentences, tmp_path, fields):
    before = measured(sentences.model, "texts", "recall@1")["recall@1"]
    out, summary = run(sentences, tmp_path, **fields)
    names = [f"{direction}recall@{count}" for direction in ("", "reverse_") for count in (1, 5)]
    after = measured(out, "texts", *names)
    last = summary["history"][-1]
    assert before < 0.4 < 0.8 < after["recall@1"]
    assert last["slices"] == pytest.approx(after)
    assert last["accuracy"] == pytest.approx((after[names[0]] + after[names[2]]) / 2)
    assert summary["pairs"] == PAIRS
    assert ("bias" in summary) == (fields.get("loss") == "sigmoid")
    if not fields.get("learn_temperature"):
        assert summary["temperature"] == pytest.approx(fields.get("temperature", 0.1))


def test_a_killed_training_resumes_and_ends_in_the_same_bytes(sentences, tmp_path, monkeypatch):
    save = training.save_checkpoint

    def save_and_die(*arguments):
        save(*arguments)
        raise Killed

    fields = {"learn_temperature": True, "chunk_size": 4, "loss": "sigmoid"}
    fields["training"] = {"steps": 10, "batch_size": 8, "checkpoint_every": 4}
    expected, summary = run(sentences, tmp_path / "whole", **fields)
    monkeypatch.setattr(training, "save_checkpoint", save_and_die)
    with pytest.raises(Killed):
        run(sentences, tmp_path / "killed", **fields)
    monkeypatch.undo()
    (tmp_path / "killed" / "out").rmdir()
    resumed, resumed_summary = run(sentences, tmp_path / "killed", **fields)
    assert (resumed / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    assert resumed_summary == summary


def test_clip_learns_captions_and_users_of_transformers_load_it(clip, tmp_path):
    names = ("recall@1:text_embeds", "recall@1:image_embeds", "recall@5:image_embeds")
    before = measured(clip.model, "images", *names)
    fields = {"learn_temperature": True, "temperature": 0.1, "chunk_size": 4}
    out, summary = run(clip, tmp_path, data="images", **fields)
    after = measured(out, "images", *names)
    assert all(after[name] > max(before[name], 0.6) for name in names[:2])
    slices = summary["history"][-1]["slices"]
    assert slices["recall@1:image_embeds"] == pytest.approx(after[names[1]])
    theirs = transformers.CLIPModel.from_pretrained(out)
    assert 1 / theirs.logit_scale.exp().item() == pytest.approx(summary["temperature"], rel=1e-5)
    assert summary["temperature"] != pytest.approx(0.1, rel=1e-3)
    assert (out / "tokenizer.json").read_text() == "{}"


def test_frozen_towers_keep_their_bytes(clip, tmp_path):
    fields = {"freeze": ["image"], "validation": None, "data": "images"}
    out, summary = run(clip, tmp_path, training=TRAINING | {"steps": 3}, **fields)
    before = transformers.CLIPModel.from_pretrained(clip.model).state_dict()
    after = transformers.CLIPModel.from_pretrained(out).state_dict()
    changed = {name for name, values in before.items() if not torch.equal(values, after[name])}
    assert not any(name.startswith("vision_model") for name in changed)
    assert {"visual_projection.weight", "text_projection.weight"} <= changed
    assert "logit_scale" not in changed
    assert summary["temperature"] == pytest.approx(1 / before["logit_scale"].exp().item())


def test_siglip_trains_its_own_bias(tmp_path):
    parent = saved_class("siglip", tmp_path / "siglip")
    short = captioned_images()
    DATA["short"] = ArrayDataset(
        {name: short.arrays[name] for name in ("input_ids", "pixel_values", "label")},
        ("input_ids", "pixel_values"),
        "label",
    )
    fields = {"loss": "sigmoid", "data": "short", "training": TRAINING | {"steps": 3}}
    out, summary = run(parent, tmp_path, **fields)
    theirs = transformers.SiglipModel.from_pretrained(out)
    assert theirs.logit_bias.item() == pytest.approx(summary["bias"])
    first = transformers.SiglipModel.from_pretrained(parent.model)
    assert theirs.logit_bias.item() != first.logit_bias.item()


def described_recordings(count=12):
    """Return spectrograms with descriptions; each recording has two."""
    rng = np.random.default_rng(1)
    recordings = np.repeat(rng.normal(size=(count, 1, 16, 16)), 2, axis=0).repeat(4, axis=2)
    tokens = rng.integers(5, 90, (2 * count, 6))
    arrays = {"input_ids": tokens, "input_features": recordings.astype(np.float32)}
    arrays["attention_mask"] = np.ones_like(tokens)
    return ArrayDataset(arrays | {"label": np.arange(2 * count) // 2 * 2}, tuple(arrays), "label")


@pytest.mark.parametrize("learn", [True, False])
def test_clap_is_trained_from_the_temperatures_of_its_own(tmp_path, learn):
    parent, model = artifact(tmp_path / "clap"), FURTHER_CLASSES["clap"].build()
    with torch.no_grad():
        model.logit_scale_a.fill_(2.0)
        model.logit_scale_t.fill_(4.0)
    model.save_pretrained(parent.model)
    DATA["recordings"] = described_recordings()
    fields = {"data": "recordings", "validation": None, "training": TRAINING | {"steps": 2}}
    out, summary = run(parent, tmp_path, learn_temperature=learn, freeze=["audio"], **fields)
    theirs = transformers.ClapModel.from_pretrained(out)
    before, after = model.state_dict(), theirs.state_dict()
    changed = {name for name, values in before.items() if not torch.equal(values, after[name])}
    assert {"audio_projection.linear1.weight", "text_projection.linear1.weight"} <= changed
    assert not any(name.startswith("audio_model") for name in changed)
    scales = theirs.logit_scale_a.item(), theirs.logit_scale_t.item()
    expected = -np.log(summary["temperature"])
    assert expected == pytest.approx(3.0, abs=0.1)
    assert scales == (pytest.approx((expected, expected)) if learn else (2.0, 4.0))
    assert set(measured(out, "recordings", "recall@1:text_embeds", "recall@1:audio_embeds"))


def test_the_products_of_a_teacher_are_learned(sentences, tmp_path):
    teacher, _ = run(sentences, tmp_path / "teacher", temperature=0.1)
    fields = {"teacher": "t", "soft_weight": 1.0, "temperature": 0.1, "validation": None}
    fields["training"] = TRAINING | {"steps": 60, "evaluate_every": 20}
    artifacts = {"teacher": artifact(teacher)}
    out, summary = run(sentences, tmp_path / "student", artifacts=artifacts, **fields)
    losses = [entry["soft"] for entry in summary["history"]]
    assert losses[0] > 4 * losses[-1]
    assert measured(out, "texts", "recall@1")["recall@1"] > 0.8
    both = {"soft_weight": 0.5, "training": TRAINING | {"steps": 2}}
    _, summary = run(sentences, tmp_path / "both", artifacts=artifacts, **{**fields, **both})
    assert {"soft", "infonce"} <= summary["history"][0].keys()


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("sentences", {"loss": "sigmoid", "chunk_size": 2}),
        ("clip", {"data": "images", "chunk_size": 2, "learn_temperature": True}),
    ],
)
def test_every_tensor_is_on_the_gpu(request, model, fields, tmp_path, monkeypatch):
    parent = request.getfixturevalue(model)
    fields = {**fields, "teacher": "large", "training": {"steps": 2, "batch_size": 4}}
    artifacts = {"teacher": parent}
    expected, _ = run(parent, tmp_path / "cpu", artifacts=artifacts, **fields)
    with pretended_gpu(monkeypatch) as gpu:
        out, _ = run(parent, tmp_path / "cuda", artifacts=artifacts, device="cuda", **fields)
    assert gpu.operations > 100
    assert (out / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()


def test_a_teacher_of_another_kind_is_a_plan_error(sentences, clip):
    facts = {"teacher": facts_of(clip.model)}
    with pytest.raises(RequirementError, match="`teacher`: one of the models has one encoder"):
        Align().estimate(config_of({"teacher": "t"}), facts_of(sentences.model), PlanContext(facts))


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Return encoders of images and of texts, and one with a head for masked tokens."""
    folder = tmp_path_factory.mktemp("towers")
    fields = CLASSES["bert"].fields
    vision = CLASSES["clip"].fields["vision_config"]
    classes = {
        "vit": TinyClass("ViTModel", "vit", "image", vision),
        "bert": TinyClass("BertModel", "bert", "text", fields),
        "mlm": TinyClass("BertForMaskedLM", "bert", "text", fields),
    }
    for name, case in classes.items():
        case.build().save_pretrained(folder / name)
    (folder / "vit" / "preprocessor_config.json").write_text("{}")
    (folder / "vit" / "tokenizer.json").write_text("of another model")
    (folder / "bert" / "tokenizer.json").write_text("{}")
    return {name: artifact(folder / name) for name in classes}


@pytest.mark.parametrize("first", ["vit", "bert"])
def test_two_frozen_encoders_become_one_checkpoint_whose_projections_learn(towers, tmp_path, first):
    second = "bert" if first == "vit" else "vit"
    fields = {"other": "second", "projection_dim": 24, "freeze": ["image", "text"]}
    fields |= {"temperature": 0.2, "training": TRAINING | {"steps": 60, "batch_size": 24}}
    out, summary = run(
        towers[first], tmp_path, data="typed", artifacts={"other": towers[second]}, **fields
    )
    history = summary["history"][-1]
    assert history["slices"]["recall@5:text_embeds"] > 0.6
    theirs = transformers.VisionTextDualEncoderModel.from_pretrained(out).eval()
    for name, tower in (("vit", theirs.vision_model), ("bert", theirs.text_model)):
        expected = type(tower).from_pretrained(towers[name].model).state_dict()
        torch.testing.assert_close(tower.state_dict(), expected, rtol=0, atol=0)
    assert sorted(file.name for file in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
    ]
    assert (out / "tokenizer.json").read_text() == "{}"
    after = measured(out, "typed", "recall@5:text_embeds")
    assert after["recall@5:text_embeds"] == pytest.approx(history["slices"]["recall@5:text_embeds"])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("vit", "vit", "both encoders are of images"),
        ("vit", "clip", "the other encoder is no encoder of images alone"),
        ("vit", "sentences", "of the family sentence-encoder, which VisionTextDualEncoder"),
        ("mlm", "vit", "the parent has no `pooler_output`; it has logits"),
    ],
)
def test_encoders_that_cannot_be_joined_are_a_plan_error(request, towers, first, second, message):
    facts = [
        facts_of((towers[name] if name in towers else request.getfixturevalue(name)).model)
        for name in (first, second)
    ]
    with pytest.raises(RequirementError, match=message):
        Align().estimate(config_of({"other": "x"}), facts[0], PlanContext({"other": facts[1]}))


@pytest.mark.parametrize("field", ["other", "teacher"])
def test_a_graph_in_place_of_an_encoder_is_a_plan_error(sentences, field):
    context = PlanContext({field: ModelFacts()}, formats={"parent": "torch", field: "onnx"})
    with pytest.raises(RequirementError, match=f"`{field}`: the artifact has the format onnx"):
        Align().estimate(config_of({field: "x"}), facts_of(sentences.model), context)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_embeddings_of_any_length_are_noted_unless_products_are_trained(tmp_path, similarity):
    TinyClass("BertModel", "bert", "text", CLASSES["bert"].fields).build().save_pretrained(
        tmp_path / "bert"
    )
    parent, notes = artifact(tmp_path / "bert"), []
    fields = {"similarity": similarity, "training": TRAINING | {"steps": 2}}
    run(parent, tmp_path, notes, **fields)
    found = [note for note in notes if "`last_hidden_state` has vectors of any length" in note]
    assert len(found) == len(notes) == (similarity == "cosine")


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("sentences", {"freeze": ["text"]}, "`freeze`: the model has one encoder"),
        ("sentences", {"output": "logits"}, "`output`: 'logits' is no embedding of the model"),
        ("clip", {"freeze": ["audio"]}, "`freeze`: the model has no tower audio(.|\n)*image, text"),
        ("clip", {"output": "text_embeds"}, "`output`: the model has a pair of outputs"),
        ("clip", {"similarity": "dot"}, "`similarity`: .* to length 1 itself"),
    ],
)
def test_fields_that_do_not_fit_are_plan_errors(request, model, fields, message):
    parent = request.getfixturevalue(model)
    with pytest.raises(RequirementError, match=message):
        Align().estimate(config_of(fields), facts_of(parent.model), PlanContext({}))


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        ("sentences", (0, 1, 0), "'train' does not pair queries with passages"),
        ("sentences", (-100, 0), "'train' has 1 pair, which leaves no negatives"),
        ("clip", (-100, 0, -100, 2), "'train' has labels that are not positions of samples"),
    ],
)
def test_data_without_pairs_is_a_plan_error(request, model, labels, message):
    facts = facts_of(request.getfixturevalue(model).model)
    context = PlanContext({}, {"train": DataFacts(retrieval_labels=labels)})
    with pytest.raises(RequirementError, match=message):
        Align().estimate(AlignConfig(validation=None), facts, context)


def test_data_of_which_a_plan_knows_nothing_is_checked_before_training(sentences, tmp_path):
    for data, message in (("one", "has 1 pair"), ("unlabelled", "does not pair")):
        with pytest.raises(DataError, match=message):
            run(sentences, tmp_path / data, data=data)


def test_the_plan_of_a_usual_encoder_fits_into_memory_and_chunks_take_less():
    family = SentenceEncoder()
    facts = planned_facts(Architecture(family, family.presets["minilm-l6"]))
    data = DataFacts((InputFacts("input_ids", "int64", (64,)),))
    sizes = []
    for fields in ({}, {"chunk_size": 8}):
        config = config_of({"validation": None, "training": {"batch_size": 64}, **fields})
        estimate = Align().estimate(config, facts, PlanContext({}, {"train": data}))
        sizes.append(estimate.peak_memory_bytes)
    # The activations of 128 texts are 1.84 GB: measured through saved_tensors_hooks.
    assert 1.84e9 < sizes[0] < 6e9
    assert sizes[1] < 1.5e9


def test_labels_of_other_pairs_are_refused_for_a_model_of_two_kinds(clip, tmp_path):
    images = captioned_images().arrays | {"label": text_pairs(12).arrays["label"]}
    DATA["mixed"] = ArrayDataset(images, DATA["images"].input_names, "label")
    with pytest.raises(DataError, match="'mixed' has labels that are not positions of samples"):
        run(clip, tmp_path, data="mixed", validation=None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"training": {"batch_size": 1}}, "leaves no negatives"),
        ({"training": {"batch_size": 8}, "chunk_size": 8}, "`chunk_size` has no effect"),
        ({"soft_weight": 0.3}, "`soft_weight` has no effect without `teacher`"),
        ({"teacher": "t", "soft_weight": 1.0, "loss": "sigmoid"}, "`loss` has no effect"),
        ({"freeze": ["text", "text"]}, "names a tower twice"),
        ({"validation": None, "training": {"patience": 1, "evaluate_every": 1}}, "patience"),
    ],
)
def test_fields_without_effect_are_named(fields, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        config_of(fields)
