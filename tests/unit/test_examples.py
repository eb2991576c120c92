"""Every example has a plan: passes, data, formats and gates fit together.

Tiny models and data stand in for what ``prepare.py`` fetches.
"""

import json
import shutil
from pathlib import Path

import pytest

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.plan import Plan
from compressor.engine.plan.planner import make_plan
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.models.families.transformers.family import Transformers
from tests.support.processors import message, write_conversations, write_processor
from tests.support.tiny_files import draw_pictures

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.rglob("*.yaml"))
WIDE = {"smollm2": {"hidden_size": 128, "intermediate_size": 256}, "glm4v": {}}
"""Fields of language models that differ from the preset."""


def write_stand_in(example: str, folder: Path) -> None:
    """Write a tiny model and data in the layout of an example's ``prepare.py``."""
    family, preset = {
        "smollm2": (Transformers(), "tiny-llama"),
        "glm4v": (Transformers(), "tiny-glm4v"),
        "efficientnet": (ImageClassifier(), "tiny"),
        "minilm": (SentenceEncoder(), "tiny"),
    }[example]
    config = family.presets[preset]
    if example == "efficientnet":
        config = family.slim(config, image_size=224)
    if example == "minilm":
        config = family.slim(config, max_position_embeddings=64, vocab_size=512)
    if example in WIDE:  # groups of up to 128 weights divide all widths
        tree = config.model_dump(mode="json") | WIDE[example]
        if "text_config" in tree:
            tree["text_config"] |= {"intermediate_size": 256}
            tree["vision_config"] |= {"hidden_size": 128, "intermediate_size": 128}
        config = family.Config.model_validate_json(json.dumps(tree))
    family.save(family.build(config), config, folder / "model")
    if example == "efficientnet":
        for split in ("train", "test"):
            draw_pictures(folder / split, 1)
            for number, class_folder in enumerate(sorted((folder / split).iterdir())):
                class_folder.rename(folder / split / str(number))
        return
    write_processor(folder / "model")
    if example == "glm4v":
        (folder / "conversations").mkdir()
        for split in ("calibration", "test"):
            write_conversations(
                folder / "conversations" / f"{split}.jsonl", [message("user", "open the camera")]
            )
        return
    if example == "minilm":
        (folder / "pairs").mkdir()
        for split in ("calibration", "test"):
            (folder / "pairs" / f"{split}.jsonl").write_text(
                '{"query": "Words", "passage": "Some words."}'
            )
        return
    for split in ("calibration", "evaluation"):
        (folder / "text" / split).mkdir(parents=True)
        (folder / "text" / split / "page.txt").write_text("words")


def plan_example(file: Path, work: Path) -> Plan:
    """Return the plan of a copy of an example in ``work``."""
    copy = work / file.name
    if not copy.exists():
        for source in (file, *file.parent.glob("*.py")):
            shutil.copy(source, work)
        if "fetched/" in file.read_text():
            write_stand_in(file.parent.name, work / "fetched")
    pipeline = load_pipeline(copy)
    sources = SourceContext(pipeline.base, allow_code=True)
    return make_plan(pipeline, Store(work / "store"), sources)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_an_example_has_a_plan(file, tmp_path):
    plan = plan_example(file, tmp_path)
    assert {step.state for step in plan.steps} == {"build"}


def test_the_phone_examples_share_one_teacher(tmp_path):
    phone = [file for file in EXAMPLES if file.parent.name == "phone"]
    teachers = {
        step.artifact_id
        for file in phone
        for step in plan_example(file, tmp_path).steps
        if step.name == "teacher"
    }
    assert len(teachers) == 1
