from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from calibration.sources.images import Images, ImagesConfig
from calibration.sources.python import Python, PythonConfig
from calibration.sources.text import Text, TextConfig
from compressor.data.contract import SourceContext
from compressor.errors import DataError, UsageError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / "p" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20 + number, 30), colour).save(
                tmp_path / "p" / name / f"{number}.png"
            )
    return tmp_path


def test_a_folder_per_class(pictures: Path) -> None:
    context, config = SourceContext(pictures), ImagesConfig(source="images", path="p", image_size=8)
    assert Images().problems(config, context) == []
    samples = Images().load(config, context)
    assert samples.class_names() == ("blue", "red")
    batch = samples.batch(np.arange(6))
    assert batch["image"].shape == (6, 3, 8, 8)
    assert (batch["image"][batch["label"] == 1][:, 0] == 255).all()
    few = ImagesConfig(source="images", path="p", image_size=8, num_samples=2, seed=1)
    assert len(Images().load(few, context)) == 2


def test_folders_that_are_named_by_the_number_of_their_class(pictures: Path) -> None:
    context = SourceContext(pictures)
    config = ImagesConfig(source="images", path="p", image_size=8, numbered=True)
    assert "not numbers of classes: blue, red" in Images().problems(config, context)[0]
    (pictures / "p" / "blue").rename(pictures / "p" / "970")
    (pictures / "p" / "red").rename(pictures / "p" / "22")
    assert Images().problems(config, context) == []
    samples = Images().load(config, context)
    batch = samples.batch(np.arange(6))
    assert sorted(set(batch["label"].tolist())) == [22, 970]
    assert (batch["image"][batch["label"] == 22][:, 0] == 255).all()
    assert samples.class_names() is None


def test_one_byte_of_a_picture_changes_the_digest_and_its_place_does_not(pictures: Path) -> None:
    context, config = SourceContext(pictures), ImagesConfig(source="images", path="p")
    before = Images().digest(config, context)
    (pictures / "p").rename(pictures / "q")
    assert Images().digest(ImagesConfig(source="images", path="q"), context) == before
    with (pictures / "q" / "red" / "0.png").open("ab") as file:
        file.write(b"x")
    assert Images().digest(ImagesConfig(source="images", path="q"), context) != before


def test_bad_pictures_are_named_all_at_once(pictures: Path) -> None:
    context, config = SourceContext(pictures), ImagesConfig(source="images", path="p")
    (pictures / "p" / "empty").mkdir()
    (pictures / "p" / "red" / "0.png").write_bytes(b"")
    found = "\n".join(Images().problems(config, context))
    assert "p/empty holds no picture" in found
    assert "0.png is empty" in found
    (pictures / "p" / "red" / "0.png").write_bytes(b"no picture")
    (pictures / "p" / "blue" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2 pictures(.|\n)*1\.png(.|\n)*0\.png"):
        Images().load(config, context)
    assert (
        "not a directory"
        in Images().problems(ImagesConfig(source="images", path="nowhere"), context)[0]
    )


def test_text_is_cut_into_windows_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh" * 4)
    (tmp_path / "b.jsonl").write_text('{"text": "设置"}\n{"text": "xy"}\n')
    context = SourceContext(tmp_path)
    samples = Text().load(TextConfig(source="text", path="*.txt", sequence_length=5), context)
    tokens = samples.batch(np.arange(len(samples)))["tokens"]
    assert bytes((tokens - 1).ravel().tolist()) == b"abcdefgh" * 3 + b"abcdef"
    lines = Text().load(TextConfig(source="text", path="b.jsonl", sequence_length=9), context)
    assert bytes((lines.batch(np.arange(1))["tokens"][0] - 1).tolist()).decode() == "设置\nxy"
    with pytest.raises(DataError, match=r"b\.jsonl:1"):
        Text().load(TextConfig(source="text", path="b.jsonl", field="txt"), context)
    with pytest.raises(DataError, match=r"no file of a\.txt holds a window of 100 bytes"):
        Text().load(TextConfig(source="text", path="a.txt", sequence_length=100), context)
    assert Text().problems(TextConfig(source="text", path="*.md"), context)


def test_text_is_cut_into_windows_of_tokens_with_the_token_after_each(tmp_path: Path) -> None:
    words = {word: number for number, word in enumerate(["[?]", "a", "b", "c", "d"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[?]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "t.txt").write_text("a b c d a b x")
    context = SourceContext(tmp_path)
    config = TextConfig(source="text", path="t.txt", tokenizer=".", sequence_length=2)
    samples = Text().load(config, context)
    assert samples.input_names == ("input_ids",)
    assert samples.label_name == "label"
    assert samples.batch(np.arange(2))["input_ids"].tolist() == [[1, 2], [4, 1]]
    assert samples.batch(np.arange(2))["label"].tolist() == [[2, 3], [1, 2]]
    before = Text().digest(config, context)
    assert Text().problems(config, context) == []
    (tmp_path / "tokenizer.json").write_text("{}")
    assert Text().digest(config, context) != before
    with pytest.raises(DataError, match="is no tokenizer"):
        Text().load(config, context)
    lost = TextConfig(source="text", path="t.txt", tokenizer="nowhere", sequence_length=2)
    assert "no tokenizer at" in Text().problems(lost, context)[0]


def test_windows_begin_as_the_tokenizer_has_a_text_begin(tmp_path: Path) -> None:
    words = {
        word: number for number, word in enumerate(["[?]", "a", "b", "c", "d", "<bos>", "</s>"])
    }
    tokenizer = Tokenizer(WordLevel(words, unk_token="[?]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A </s>", special_tokens=[("<bos>", 5), ("</s>", 6)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "t.txt").write_text("a b c d a b d")
    context = SourceContext(tmp_path)
    samples = Text().load(
        TextConfig(source="text", path="t.txt", tokenizer=".", sequence_length=3), context
    )
    assert samples.batch(np.arange(2))["input_ids"].tolist() == [[5, 1, 2], [5, 4, 1]]
    assert samples.batch(np.arange(2))["label"].tolist() == [[1, 2, 3], [4, 1, 2]]
    with pytest.raises(DataError, match="the tokenizer puts 1 tokens before each window"):
        Text().load(
            TextConfig(source="text", path="t.txt", tokenizer=".", sequence_length=1), context
        )


def test_code_runs_only_when_it_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(
        "import numpy as np\ndef load(n=3):\n    return {'x': np.arange(n), 'label': np.arange(n) % 2}\n"
        "def broken():\n    return 1 / 0\ndef wrong():\n    return 7\n"
    )
    config = PythonConfig(source="python", path="my.py", arguments={"n": 5})
    closed, opened = SourceContext(tmp_path), SourceContext(tmp_path, allow_code=True)
    assert "--allow-code" in Python().problems(config, closed)[0]
    with pytest.raises(UsageError):
        Python().load(config, closed)
    samples = Python().load(config, opened)
    assert (len(samples), samples.input_names, samples.label_name) == (5, ("x",), "label")
    before = Python().digest(config, opened)
    for function, message in (
        ("broken", "ZeroDivisionError"),
        ("wrong", "returned int"),
        ("missing", "AttributeError"),
    ):
        with pytest.raises(DataError, match=message):
            Python().load(PythonConfig(source="python", path="my.py", function=function), opened)
    (tmp_path / "my.py").write_text((tmp_path / "my.py").read_text() + "# changed\n")
    assert Python().digest(config, opened) != before
