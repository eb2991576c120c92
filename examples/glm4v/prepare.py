"""Write screenshots of the phone bed with commands and actions, as conversations for a glm4v.

    python examples/glm4v/prepare.py FOLDER --checkpoint CHECKPOINT [--screens 64]
    python examples/glm4v/prepare.py FOLDER --tokenizer FOLDER [--screens 64]

This writes ``FOLDER/conversations/{calibration,test}.jsonl`` with ``screens/*.png`` beside them,
and ``FOLDER/model``: a link to CHECKPOINT (such as AutoGLM-Phone-9B), or a small glm4v with random
weights, which only shows that the pipeline runs. The small model has the tokenizer of another
checkpoint (``examples/smollm2/prepare.py`` writes one to ``FOLDER/model``), because no package
contains GLM's. Requires the extra ``phone-bed``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from calibration.sources.phone_bed.dataset import ABSENT, CELLS, GRID
from calibration.sources.phone_bed.source import PhoneBed, PhoneBedConfig
from compressor.data.contract import SourceContext

SIDE = 336
"""Side of a screen in pixels."""
SPECIAL = (
    "<|image|>",
    "<|video|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
IDS = ("image", "video", "image_start", "image_end", "video_start", "video_end")
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}\
{% for part in message.content %}{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}\
{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def format_action(label: int) -> str:
    """Return AutoGLM's answer: a tap at the centre of a cell, in thousandths of the screen."""
    if label == ABSENT:
        return 'finish(message="There is no such icon on the screen.")'
    centre = [round(1000 * (cell + 0.5) / GRID) for cell in (label % GRID, label // GRID)]
    return f'do(action="Tap", element={centre})'


def write_conversations(folder: Path, name: str, split: str, count: int) -> None:
    """Write screens, each with one written command and its action."""
    from PIL import Image

    assert CELLS == GRID * GRID
    bed = PhoneBed().load(
        PhoneBedConfig(source="phone-bed", split=split, num_samples=4 * count),
        SourceContext(Path()),
    )
    batch = bed.batch(np.arange(4 * count, dtype=np.int64))
    written = np.flatnonzero(batch["tokens"].any(axis=1))[:count]
    (folder / "screens").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in written.tolist():
        file = f"screens/{name}-{number:05d}.png"
        screen = Image.fromarray(batch["screen"][number].transpose(1, 2, 0))
        screen.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / file)
        tokens = batch["tokens"][number]
        command = bytes((tokens[tokens > 0] - 1).astype(np.uint8)).decode()
        question = [{"type": "image", "path": file}, {"type": "text", "text": command}]
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": format_action(int(batch["label"][number]))},
        ]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def small_config(vocab_size: int, token_ids: dict[str, int]) -> dict[str, Any]:
    """Return config.json of a small glm4v; ``token_ids`` are those of the special tokens."""
    return {
        "model_type": "glm4v",
        "architectures": ("Glm4vForConditionalGeneration",),
        "dtype": "bfloat16",
        **{f"{name}_token_id": token_id for name, token_id in token_ids.items()},
        "text_config": {
            "model_type": "glm4v_text",
            "vocab_size": vocab_size,
            "hidden_size": 512,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [4, 6, 6],
            },
        },
        "vision_config": {
            "model_type": "glm4v_vision",
            "depth": 4,
            "hidden_size": 256,
            "num_heads": 4,
            "out_hidden_size": 512,
            "intermediate_size": 1024,
            "image_size": SIDE,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
    }


def write_processor(folder: Path, tokenizer: Path) -> tuple[int, dict[str, int]]:
    """Write a processor; return the size of its vocabulary and the ids of the special tokens."""
    from transformers import AutoTokenizer
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    extended = AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True)
    extended.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    extended.chat_template = TEMPLATE
    extended.save_pretrained(str(folder))
    Glm4vImageProcessorPil().save_pretrained(str(folder))
    ids = extended.convert_tokens_to_ids(list(SPECIAL))
    return len(extended), dict(zip(IDS, ids, strict=True))


def write_model(folder: Path, tokenizer: Path) -> None:
    """Write a small glm4v with random weights, and its processor."""
    import torch

    from compressor.models.families.transformers.config import CheckpointConfig
    from compressor.models.families.transformers.family import Transformers

    size, ids = write_processor(folder, tokenizer)
    config: Any = CheckpointConfig.model_validate(small_config(size, ids))
    torch.manual_seed(0)
    family = Transformers()
    family.save(family.build(config), config, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", type=Path, help="glm4v checkpoint with its processor")
    model.add_argument(
        "--tokenizer", type=Path, help="checkpoint with a tokenizer, for a small random model"
    )
    parser.add_argument("--screens", type=int, default=64, help="screens per set")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in (("calibration", "train"), ("test", "test")):
        write_conversations(folder / "conversations", name, split, options.screens)
    if options.checkpoint is not None:
        (folder / "model").symlink_to(options.checkpoint.resolve(), target_is_directory=True)
    else:
        write_model(folder / "model", options.tokenizer)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
