"""Small vision-language checkpoints of transformers, with real processors built locally."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from transformers.models.auto import image_processing_auto, processing_auto

VOCABULARY = 320
_SPECIAL = 256
"""First token that is no word ``w<number>``."""
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_QWEN_TOWER = {"depth": 2, "num_heads": 2, "in_channels": 3, "initializer_range": 0.2}
_QWEN_IMAGES = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}}
_QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
_QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
_GLM_TOKENS = (
    *("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|end_of_video|>"),
)
_QWEN_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
_CLIP = {"model_type": "clip_vision_model", **_TOWER, "image_size": 28, "patch_size": 14}
_SIGLIP = {"model_type": "siglip_vision_model", **_TOWER, "image_size": 28, "patch_size": 7}
_LLAMA = {"model_type": "llama", **_TEXT}
_TILES = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
_ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))


@dataclass(frozen=True)
class Vlm:
    """Config and processor of a small model."""

    config: Mapping[str, Any]
    placeholder: str
    """Image in the chat template."""
    images: Mapping[str, Any]
    """Arguments of the image processor."""
    tokens: tuple[str, ...]
    """Special tokens."""
    ids: Mapping[str, str] = field(default_factory=dict)
    """Field of config.json to its token."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Attribute of the tokenizer to its token."""
    processor: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the processor."""


def _qwen(text: Mapping[str, Any], vision: Mapping[str, Any], **images: Any) -> Vlm:
    return Vlm(
        {"text_config": {**_TEXT, **text}, "vision_config": {**_QWEN_TOWER, **vision}},
        _QWEN_PLACEHOLDER,
        {**_QWEN_IMAGES, **images},
        _QWEN_TOKENS,
        _QWEN_IDS,
    )


_QWEN3_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "patch_size": 16,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
_QWEN3_IMAGES = {"patch_size": 16, "size": {"shortest_edge": 32**2, "longest_edge": 32**2 * 16}}
_SMOL = Vlm(
    {
        "text_config": _LLAMA,
        "vision_config": {**_TOWER, "image_size": 28, "patch_size": 7},
        "scale_factor": 2,
        "pad_token_id": 0,
    },
    "<image>",
    {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}},
    (*_TILES, *_ROWS),
    {"image_token_id": "<image>"},
    processor={"image_seq_len": 4},
)
_LLAVA = Vlm(
    {"text_config": _LLAMA, "vision_config": _CLIP, "image_seq_length": 4},
    "<image>",
    {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
    ("<image>",),
    {"image_token_index": "<image>"},
    processor={
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    },
)
_GRIDS = [[28, 56], [56, 28], [56, 56]]
VLMS: Mapping[str, Vlm] = {
    "qwen2_vl": _qwen(
        {"rope_parameters": _MROPE},
        {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": _qwen(
        {"rope_parameters": _MROPE},
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
    ),
    "qwen3_vl": _qwen(
        {"rope_parameters": {**_MROPE, "mrope_interleaved": True}, "head_dim": 16},
        _QWEN3_TOWER,
        **_QWEN3_IMAGES,
    ),
    "internvl": Vlm(
        {
            "text_config": {"model_type": "qwen2", **_TEXT},
            "vision_config": {
                **_TOWER,
                "image_size": [28, 28],
                "patch_size": [7, 7],
                "layer_scale_init_value": 0.5,
            },
            "image_seq_length": 4,
        },
        "<IMG_CONTEXT>",
        {"size": {"height": 28, "width": 28}, "max_patches": 4, "crop_to_patches": True},
        ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        {"image_token_id": "<IMG_CONTEXT>"},
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        {"image_seq_length": 4},
    ),
    "llava": _LLAVA,
    "llava_next": Vlm(
        {**_LLAVA.config, "image_grid_pinpoints": _GRIDS},
        "<image>",
        {**_LLAVA.images, "image_grid_pinpoints": _GRIDS},
        ("<image>",),
        {"image_token_index": "<image>"},
        processor=_LLAVA.processor,
    ),
    "paligemma": Vlm(
        {
            "text_config": {"model_type": "gemma", **_TEXT, "head_dim": 16},
            "vision_config": {**_SIGLIP, "projection_dim": 64, "vision_use_head": False},
            "projection_dim": 64,
            "hidden_size": 64,
        },
        "<image>",
        {"size": {"height": 28, "width": 28}, "image_seq_length": 16},
        ("<image>",),
        {"image_token_index": "<image>"},
        {"image_token": "<image>"},
    ),
    "gemma3": Vlm(
        {
            "text_config": {
                "model_type": "gemma3_text",
                **_TEXT,
                "head_dim": 16,
                "query_pre_attn_scalar": 16,
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": {**_SIGLIP, "vision_use_head": False},
            "mm_tokens_per_image": 4,
        },
        "<start_of_image>",
        {"size": {"height": 28, "width": 28}},
        ("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        {
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
            "image_token_index": "<image_soft_token>",
        },
        {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        {"image_seq_length": 4},
    ),
    "smolvlm": _SMOL,
    "idefics3": _SMOL,
}
"""``model_type`` to a small model of the class."""
_OVIS_TOKENS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
FURTHER_VLMS: Mapping[str, Vlm] = {
    "ovis2": Vlm(
        {
            "text_config": {"model_type": "qwen2", **_TEXT},
            "vision_config": {
                **_TOWER,
                "image_size": 28,
                "patch_size": 7,
                "hidden_stride": 2,
                "vocab_size": 64,
                "num_visual_indicator_tokens": len(_OVIS_TOKENS),
            },
            "hidden_size": 64,
            "vocab_size": VOCABULARY,
            "visual_indicator_token_ids": [_SPECIAL + number for number in range(5)],
        },
        "<image>",
        {"size": {"height": 28, "width": 28}},
        (*_OVIS_TOKENS, "<IMG_ATOM>", "<image>"),
        {"image_token_id": "<IMG_ATOM>"},
        processor={"image_seq_length": 4},
    ),
    "llava_onevision": Vlm(
        {**_LLAVA.config, "vision_config": {**_SIGLIP, "vision_use_head": False}}
        | {"image_grid_pinpoints": _GRIDS, "vision_feature_select_strategy": "full"}
        | {"vision_feature_layer": -1, "vision_aspect_ratio": "anyres_max_9"},
        "<image>",
        {"size": {"height": 28, "width": 28}, "image_grid_pinpoints": _GRIDS},
        ("<image>", "<video>"),
        {"image_token_index": "<image>", "video_token_index": "<video>"},
        processor={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "qwen3_5": _qwen(
        {
            "rope_parameters": {**_MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
            **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
        },
        {name: value for name, value in _QWEN3_TOWER.items() if "deepstack" not in name},
        **_QWEN3_IMAGES,
    ),
    "glm4v_moe": Vlm(
        {
            "text_config": {
                **_TEXT,
                "rope_parameters": {
                    **_MROPE,
                    "mrope_section": [1, 1, 2],
                    "partial_rotary_factor": 0.5,
                },
                "moe_intermediate_size": 32,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
            },
            "vision_config": {
                **_QWEN_TOWER,
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": 64,
                "image_size": 28,
            },
        },
        "<|begin_of_image|><|image|><|end_of_image|>",
        _QWEN_IMAGES,
        _GLM_TOKENS,
        {
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>",
            "video_start_token_id": "<|begin_of_video|>",
            "video_end_token_id": "<|end_of_video|>",
        },
    ),
    "qwen3_vl_moe": _qwen(
        {
            "rope_parameters": {**_MROPE, "mrope_interleaved": True},
            "head_dim": 16,
            "moe_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        _QWEN3_TOWER,
        **_QWEN3_IMAGES,
    ),
    "aya_vision": Vlm(
        {
            "text_config": {"model_type": "cohere2", **_TEXT, "sliding_window": 16},
            "vision_config": {**_SIGLIP, "vision_use_head": False},
            "downsample_factor": 2,
            "alignment_intermediate_size": 64,
        },
        "<image>",
        {"size": {"height": 28, "width": 28}, "max_patches": 4, "crop_to_patches": True},
        (
            *("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>"),
            *("<|IMG_LINE_BREAK|>", "TILE_GLOBAL", *(f"TILE_{tile}" for tile in range(1, 5))),
        ),
        {"image_token_index": "<|IMG_PATCH|>"},
        processor={"patch_size": 7, "img_size": 28, "downsample_factor": 2},
    ),
    "vipllava": Vlm(
        {"text_config": _LLAMA, "vision_config": _CLIP, "vision_feature_layers": [-1, -2]},
        "<image>",
        _LLAVA.images,
        ("<image>",),
        {"image_token_index": "<image>"},
        processor=_LLAVA.processor,
    ),
    "mistral3": Vlm(
        {
            "text_config": {"model_type": "mistral", **_TEXT, "head_dim": 16},
            "vision_config": {
                "model_type": "pixtral",
                **_TOWER,
                "image_size": 112,
                "patch_size": 14,
                "head_dim": 16,
            },
        },
        "[IMG]",
        {"size": {"longest_edge": 112}, "patch_size": {"height": 28, "width": 28}},
        ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        {"image_token_index": "[IMG]"},
        processor={"patch_size": 14, "spatial_merge_size": 2},
    ),
}
"""Further classes for ``write_vlm``; the processor of mistral3 needs torchvision."""

_IMAGES_OF = {"glm4v_moe": "glm4v", "qwen3_vl_moe": "qwen3_vl"}
"""Classes with the image processor of another."""
_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> "
    "{% if message.content is string %}{{ message.content }} {% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}PLACEHOLDER {% else %}"
    "{{ part.text }} {% endif %}{% endfor %}{% endif %}<end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def write_vlm(folder: Path, model_type: str, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint with random weights and its processor; word ``w7`` is token 7."""
    vlm = {**VLMS, **FURTHER_VLMS}[model_type]
    write_vlm_processor(folder, model_type)
    fields: dict[str, Any] = json.loads(json.dumps(vlm.config))
    fields |= {name: _SPECIAL + vlm.tokens.index(token) for name, token in vlm.ids.items()}
    config = transformers.AutoConfig.for_model(model_type, tie_word_embeddings=False, **fields)
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():  # some classes start with projections of zeros
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    model.to(dtype).save_pretrained(folder)


def write_vlm_processor(folder: Path, model_type: str) -> None:
    """Write the tokenizer, image processor, processor and chat template of a small model."""
    vlm = {**VLMS, **FURTHER_VLMS}[model_type]
    vocabulary = {f"w{number}": number for number in range(4, _SPECIAL)}
    vocabulary |= {"<pad>": 0, "<user>": 1, "<assistant>": 2, "<end>": 3}
    vocabulary |= {token: _SPECIAL + number for number, token in enumerate(vlm.tokens)}
    tokenizer_model = Tokenizer(WordLevel(vocabulary, unk_token="w5"))
    tokenizer_model.pre_tokenizer = WhitespaceSplit()
    tokenizer_model.add_special_tokens([*vlm.tokens, "<user>", "<assistant>", "<end>"])
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_model,
        additional_special_tokens=[*vlm.tokens, "<user>", "<assistant>"],
        eos_token="<end>",
        bos_token="<user>",
        pad_token="<pad>",
        extra_special_tokens=dict(vlm.names),
    )
    names = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES
    named = names.get(model_type) or names[_IMAGES_OF[model_type]]
    images = getattr(transformers, named["pil"])(**vlm.images)
    template = _TEMPLATE.replace("PLACEHOLDER", vlm.placeholder)
    base = getattr(transformers, processing_auto.PROCESSOR_MAPPING_NAMES[model_type])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    fields = {"processor_class": base.__name__, **vlm.processor}
    (folder / "processor_config.json").write_text(json.dumps(fields, indent=2))
