"""Retrieval: recall among queries and passages, and pairs of images and captions."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from calibration.sources.image_captions import ImageCaptions, ImageCaptionsConfig
from compressor.artifacts.store import Store
from compressor.data.contract import Dataset, SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import make_plan
from compressor.errors import ConfigError, DataError
from compressor.evaluation.accuracy import measure_accuracy
from compressor.evaluation.metrics import is_metric
from compressor.evaluation.outputs import misfit
from compressor.evaluation.records import AccuracyConfig
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.formats import recognize
from compressor.runtimes.session import Session
from tests.support.encoder_classes import CLASSES


class Towers(Session):
    """Outputs its inputs as embeddings of images and of texts."""

    runtime, output_names = "towers 1", ("logits_per_image", "image_embeds", "text_embeds")
    inputs = tuple(InputSpec(name, "float64", ("batch", "width")) for name in ("image", "text"))

    def compute(self, feeds):
        image, text = feeds["image"], feeds["text"]
        return {"logits_per_image": image @ text.T, "image_embeds": image, "text_embeds": text}


class Pairs(Dataset):
    input_names, label_name = ("image", "text"), "label"

    def __init__(self, image, text, label):
        self.arrays = {"image": np.array(image, float), "text": np.array(text, float)}
        self.arrays["label"] = np.array(label)

    def __len__(self):
        return len(self.arrays["label"])

    def batch(self, indices, epoch=0):
        return {name: array[indices] for name, array in self.arrays.items()}


def measure(session, data, *metrics):
    config = AccuracyConfig(data="pairs", metrics=metrics, bootstrap=0, batch_size=2)
    report = measure_accuracy(session, data, config, lambda *_: None)
    return {metric.name: (metric.value, metric.samples) for metric in report.metrics}


def test_texts_find_images_and_images_any_of_their_texts():
    # Two images; the first has two captions, of which one is nearer to the other image.
    data = Pairs([[1, 0], [1, 0], [0, 1]], [[0.1, 0.9], [1, 0], [0, 0.8]], [0, 0, 2])
    values = measure(Towers(), data, "recall@1", "recall@2:image_embeds", "mrr")
    values |= measure(Towers(), data, "recall@1:image_embeds")
    assert values["recall@1"] == (pytest.approx(2 / 3), 3)
    assert values["recall@2:image_embeds"] == (1.0, 2)
    assert values["recall@1:image_embeds"] == (pytest.approx(1 / 2), 2)
    assert values["mrr"] == (pytest.approx(5 / 6), 3)


def test_names_of_classes_as_captions_are_zero_shot_classification():
    # Four images of three classes. The second image is nearest to the name of another class.
    data = Pairs(
        [[1, 0, 0], [0, 0.9, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [0, 1, 2, 3],
    )
    data.arrays["input_ids"] = np.array([[5, 0], [5, 9], [6, 0], [7, 0]])
    data.arrays["attention_mask"] = np.array([[1, 0]] * 4)
    values = measure(Towers(), data, "recall@1") | measure(Towers(), data, "recall@1:image_embeds")
    assert values["recall@1:image_embeds"] == (0.75, 4)
    # The name that two images share is one query, which either of them answers, and one passage.
    assert values["recall@1"] == (1.0, 3)
    with pytest.raises(DataError, match="has 3 passages"):
        measure(Towers(), data, "recall@3:image_embeds")


def test_recall_of_all_passages_is_refused():
    data = Pairs([[1, 0], [1, 0], [0, 1]], [[0.1, 0.9], [1, 0], [0, 0.8]], [0, 0, 2])
    with pytest.raises(DataError, match=r"recall@2:text_embeds is 1 for every model.* 2 passages"):
        measure(Towers(), data, "recall@1", "recall@2:text_embeds")


def test_names_of_recall():
    assert is_metric("recall@10") and is_metric("recall@1:text_embeds")
    assert not any(map(is_metric, ("recall@0", "recall@", "recall@1:", "recall")))
    assert "retrieval by embeddings" in str(misfit("recall@1", ("logits",), 5))
    assert misfit("recall@1", ("logits", "pooler_output"), 5) is None


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    case = CLASSES["clip"]
    case.build().save_pretrained(folder / "model")
    words = {"<pad>": 1, "</s>": 95} | {f"w{number}": number for number in range(5, 90)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w5"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=12
    ).save_pretrained(folder / "model")
    size = {"height": case.side, "width": case.side}
    transformers.CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    records = []
    for index in range(3):
        pixels = rng.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        texts = [f"w{10 + index} w7 </s>", "w9 </s>"] if index == 0 else f"w{10 + index} </s>"
        records.append({"image": f"{index}.png", "text": texts})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def load(folder, **fields):
    config = ImageCaptionsConfig(
        source="image-captions", path="pairs.jsonl", processor="model", **fields
    )
    context = SourceContext(base=folder)
    assert ImageCaptions().problems(config, context) == []
    return ImageCaptions().load(config, context)


def test_captions_go_through_the_real_processor_of_clip(captions):
    data = load(captions)
    batch = data.batch(np.arange(4))
    assert batch["label"].tolist() == [0, 0, 2, 3]
    picture = Image.open(captions / "0.png").convert("RGB")
    processor = transformers.AutoImageProcessor.from_pretrained(captions / "model", backend="pil")
    expected = processor(picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(batch["pixel_values"][1], expected)
    model = transformers.CLIPModel.from_pretrained(captions / "model")
    with torch.no_grad():
        outputs = model(**{name: torch.from_numpy(batch[name]) for name in data.input_names})
    logits = outputs.text_embeds @ outputs.image_embeds[[0, 2, 3]].T
    right = (logits.argmax(1) == torch.tensor([0, 0, 1, 2])).float().mean().item()
    with recognize(captions / "model").open_session(1) as session:
        assert measure(session, data, "recall@1")["recall@1"] == (pytest.approx(right), 4)


def test_captions_of_two_encoders_have_the_arrays_of_the_encoder_of_texts(captions):
    CLASSES["bert"].build().save_pretrained(captions / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (captions / "bert" / name).write_bytes((captions / "model" / name).read_bytes())
    joint, own = load(captions), load(captions, tokenizer="bert")
    batch, expected = own.batch(np.arange(3)), joint.batch(np.arange(3))
    assert set(own.input_names) == {*joint.input_names, "token_type_ids"}
    assert not batch["token_type_ids"].any()
    np.testing.assert_array_equal(batch["pixel_values"], expected["pixel_values"])
    (captions / "bert" / "tokenizer.json").unlink()
    config = ImageCaptionsConfig(
        source="image-captions", path="pairs.jsonl", processor="model", tokenizer="bert"
    )
    (problem,) = ImageCaptions().problems(config, SourceContext(base=captions))
    assert "there is no tokenizer at" in problem and "bert" in problem


@pytest.mark.parametrize(
    ("fields", "metrics", "message"),
    [
        ("", ["recall@2:text_embeds", "recall@3:image_embeds", "mrr"], None),
        ("", ["recall@3:text_embeds"], r"recall@3:text_embeds is 1 for every model.* 3 passages"),
        ("", ["recall@3", "recall@9:image_embeds"], r"recall@9:image_embeds .* 4 passages"),
        (", num_samples: 3", ["recall@2"], r"recall@2 is 1 for every model.* 2 passages"),
    ],
)
def test_recall_of_all_passages_is_refused_by_plan(captions, fields, metrics, message):
    data = "{source: image-captions, path: pairs.jsonl, processor: model}"
    file = captions / "pipeline.yaml"
    file.write_text(
        f"version: 1\nname: pairs\nmodel: {{path: model}}\ndata: {{pairs: {data}}}\n"
        f"evaluate:\n  accuracy: {{data: pairs, metrics: {metrics}{fields}}}\n"
    )
    pipeline = load_pipeline(file)
    if message is None:
        make_plan(pipeline, Store(captions / "store"), SourceContext(captions))
        return
    with pytest.raises(ConfigError, match=message):
        make_plan(pipeline, Store(captions / "store"), SourceContext(captions))


def test_records_without_image_or_caption_are_named(captions):
    records = '{"image": "0.png"}\n{"image": "9.png", "text": "w7"}\n{"image": "0.png", "text": ""}'
    (captions / "bad.jsonl").write_text(records)
    config = ImageCaptionsConfig(source="image-captions", path="bad.jsonl", processor="model")
    problems = ImageCaptions().problems(config, SourceContext(base=captions))
    assert ["no field 'text'" in problems[0], "9.png" in problems[1], "blank" in problems[2]] == [
        True,
        True,
        True,
    ]
