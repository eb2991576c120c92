"""Presets of the family; ``docs/decisions/0002-reference-model.md`` explains their sizes."""

from __future__ import annotations

from compressor.models.families.autoglm_phone.config import Block, PhoneConfig


def _block(kernel: int, expanded: int, out: int, stride: int, squeeze: bool = False) -> Block:
    return Block.model_validate(
        {"kernel": kernel, "expanded": expanded, "out": out, "stride": stride, "squeeze": squeeze}
    )


BED_TEACHER = PhoneConfig(
    screen_size=96,
    vision="mobilenet",
    vision_width=192,
    vision_stem=16,
    vision_blocks=(
        _block(3, 16, 32, 2),
        _block(3, 64, 64, 2, squeeze=True),
        _block(3, 192, 64, 1, squeeze=True),
        _block(3, 192, 64, 1, squeeze=True),
    ),
    speech="mel-cnn",
    frames=192,
    speech_width=96,
    speech_layers=1,
    tokens=48,
    hidden=96,
    ffn=192,
    heads=3,
    key_heads=1,
    head_width=32,
    encoder_layers=1,
    decoder_layers=1,
    adapter=96,
    fusion_layers=1,
    gate=32,
    shared=96,
    concepts=60,
)

BED_STUDENT = BED_TEACHER.model_copy(
    update={
        "vision_blocks": BED_TEACHER.vision_blocks[:2],
        "speech_layers": 0,
        "ffn": 64,
        "adapter": 32,
    }
)
"""The teacher with fewer layers and narrower inner widths.

The remaining tensors have the shapes of the teacher's and can be initialised from them.
"""

TINY = PhoneConfig(
    screen_size=24,
    vision="mobilenet",
    vision_width=8,
    vision_stem=4,
    vision_blocks=(_block(3, 8, 8, 2), _block(3, 8, 8, 1, squeeze=True)),
    speech="mel-cnn",
    frames=32,
    speech_width=8,
    speech_layers=1,
    tokens=12,
    hidden=16,
    ffn=16,
    heads=2,
    key_heads=1,
    head_width=8,
    encoder_layers=1,
    decoder_layers=1,
    adapter=8,
    fusion_layers=1,
    gate=4,
    shared=8,
    concepts=4,
)

NINE_B = PhoneConfig(
    screen_size=672,
    vision="vit-lite",
    vision_width=1792,
    vision_patch=14,
    vision_layers=36,
    vision_heads=14,
    vision_head_width=128,
    vision_ffn=7168,
    speech="wav2vec-bridge",
    frames=3000,
    speech_width=1280,
    speech_layers=40,
    speech_heads=20,
    speech_head_width=64,
    speech_ffn=5120,
    tokens=512,
    hidden=3072,
    ffn=12288,
    heads=24,
    key_heads=2,
    head_width=128,
    encoder_layers=24,
    decoder_layers=24,
    adapter=9728,
    fusion_layers=2,
    gate=768,
    queries=32,
    shared=1024,
)

PRESETS = {"tiny": TINY, "bed-student": BED_STUDENT, "bed-teacher": BED_TEACHER, "9b": NINE_B}
