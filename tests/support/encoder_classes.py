"""Tiny random models of transformers' encoders, vision, speech and encoder-decoder classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

_TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
_T5 = {
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_BART = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
_WAV = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
_SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
}
_RESNET = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 24, 32, 48],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}
_DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 8,
    "num_labels": 5,
}
_CLIP_TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "eos_token_id": 95,
    "bos_token_id": 94,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class TinyClass:
    """A class of transformers with a small config, and the kind of its inputs."""

    class_name: str
    model_type: str
    inputs: str
    """``text``, ``pair``, ``seq2seq``, ``image``, ``clip``, ``speech``, ``mel`` or ``sam``."""
    fields: dict[str, Any] = field(default_factory=dict)
    side: int = 32
    """Height and width of images in pixels."""

    def config(self) -> Any:
        """Return the config of transformers."""
        config = transformers.AutoConfig.for_model(self.model_type, **self.fields)
        config.architectures = [self.class_name]
        config.use_cache = False
        return config

    def build(self, seed: int = 0) -> Any:
        """Return the model in eval mode; its batch norms have statistics unlike 0 and 1."""
        torch.manual_seed(seed)
        model = getattr(transformers, self.class_name)(self.config()).eval()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("running_mean"):
                    tensor.copy_(0.2 * torch.randn_like(tensor))
                elif name.endswith("running_var"):
                    tensor.copy_(torch.rand_like(tensor) + 0.5)
                elif tensor.ndim > 1 and tensor.is_floating_point():
                    # The init of 0.02 makes logits that every class shares.
                    tensor.copy_(torch.randn_like(tensor) / max(1, tensor[0].numel()) ** 0.5)
        return model

    def batch(self, count: int, seed: int = 0) -> dict[str, Tensor]:
        """Return random inputs for ``count`` samples."""
        generator = torch.Generator().manual_seed(seed)
        return _BATCHES[self.inputs](self, count, generator)


def _text(case: TinyClass, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(5, 90, (count, 12), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, count, 2):
        mask[row, 9:] = 0
        ids[row, 9:] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _pair(case: TinyClass, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    batch = _text(case, count, generator)
    types = torch.zeros_like(batch["input_ids"])
    types[:, 6:] = 1
    return batch | {"token_type_ids": types}


def _seq2seq(case: TinyClass, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    decoder = torch.randint(5, 90, (count, 7), generator=generator)
    decoder[:, 0] = 0
    return _text(case, count, generator) | {"decoder_input_ids": decoder}


def _image(case: TinyClass, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    shape = (count, 3, case.side, case.side)
    return {"pixel_values": torch.randn(shape, generator=generator)}


def _clip(case: TinyClass, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    batch = _text(case, count, generator)
    batch["input_ids"][:, -1] = 95
    batch["attention_mask"][:] = 1
    return batch | _image(case, count, generator)


def _speech(case: TinyClass, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    waveforms = torch.randn(count, 800, generator=generator)
    if case.fields.get("feat_extract_norm") != "layer":  # trained without masks
        return {"input_values": waveforms}
    mask = torch.ones(waveforms.shape, dtype=torch.int64)
    mask[1::2, 600:] = 0
    return {"input_values": waveforms * mask, "attention_mask": mask}


def _mel(case: TinyClass, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    decoder = torch.randint(5, 90, (count, 7), generator=generator)
    features = torch.randn(count, 16, 64, generator=generator)
    return {"input_features": features, "decoder_input_ids": decoder}


def _sam(case: TinyClass, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    points = 32 * torch.rand(count, 1, 2, 2, generator=generator)
    return _image(case, count, generator) | {"input_points": points}


_BATCHES = {
    "text": _text,
    "pair": _pair,
    "seq2seq": _seq2seq,
    "image": _image,
    "clip": _clip,
    "speech": _speech,
    "mel": _mel,
    "sam": _sam,
}

_LABELS = {"num_labels": 4}
_DISTIL = {
    "vocab_size": 96,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 64,
}
_MODERN = {
    **_TEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "local_attention": 8,
    "global_attn_every_n_layers": 2,
}
_ROBERTA = {**_TEXT, "type_vocab_size": 1}
_ALBERT = {**_TEXT, "embedding_size": 16, "num_hidden_groups": 1}
_DEBERTA = {
    **_TEXT,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
}
_ELECTRA = {**_TEXT, "embedding_size": 16}
_CONVNEXT = {
    "hidden_sizes": [16, 24],
    "depths": [1, 1],
    "num_stages": 2,
    "image_size": 32,
}
_WHISPER = {
    **_BART,
    "num_mel_bins": 16,
    "max_source_positions": 32,
    "max_target_positions": 32,
    "decoder_start_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "begin_suppress_tokens": None,
    "suppress_tokens": None,
}
_CLIP = {
    "text_config": _CLIP_TEXT,
    "vision_config": _VIT,
    "projection_dim": 24,
}
_SAM = {
    "vision_config": {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "window_size": 2,
        "global_attn_indexes": [1],
        "mlp_dim": 48,
        "num_pos_feats": 8,
    },
    "prompt_encoder_config": {
        "hidden_size": 16,
        "image_size": 32,
        "patch_size": 8,
        "mask_input_channels": 8,
    },
    "mask_decoder_config": {
        "hidden_size": 16,
        "mlp_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    },
}
_RT_DETR = {
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 24, 32, 64],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [24, 32, 64],
    "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "d_model": 32,
    "num_queries": 8,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "num_denoising": 0,
    "use_timm_backbone": False,
    "num_labels": 5,
}
_DETR_RESNET = {
    **_DETR,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": _RESNET,
}

CLASSES: dict[str, TinyClass] = {
    "bert": TinyClass("BertForSequenceClassification", "bert", "pair", {**_TEXT, **_LABELS}),
    "bert-mlm": TinyClass("BertForMaskedLM", "bert", "pair", _TEXT),
    "bert-token": TinyClass("BertForTokenClassification", "bert", "pair", {**_TEXT, **_LABELS}),
    "bert-base": TinyClass("BertModel", "bert", "pair", _TEXT),
    "bert-qa": TinyClass("BertForQuestionAnswering", "bert", "pair", _TEXT),
    "bert-reranker": TinyClass(
        "BertForSequenceClassification", "bert", "pair", {**_TEXT, "num_labels": 1}
    ),
    "roberta": TinyClass(
        "RobertaForSequenceClassification", "roberta", "text", {**_ROBERTA, **_LABELS}
    ),
    "xlm-roberta": TinyClass(
        "XLMRobertaForSequenceClassification", "xlm-roberta", "text", {**_ROBERTA, **_LABELS}
    ),
    "xlm-roberta-embed": TinyClass("XLMRobertaModel", "xlm-roberta", "text", _ROBERTA),
    "deberta-v2": TinyClass(
        "DebertaV2ForSequenceClassification", "deberta-v2", "text", {**_DEBERTA, **_LABELS}
    ),
    "albert": TinyClass(
        "AlbertForSequenceClassification", "albert", "pair", {**_ALBERT, **_LABELS}
    ),
    "distilbert": TinyClass(
        "DistilBertForSequenceClassification", "distilbert", "text", {**_DISTIL, **_LABELS}
    ),
    "modernbert": TinyClass(
        "ModernBertForSequenceClassification", "modernbert", "text", {**_MODERN, **_LABELS}
    ),
    "electra": TinyClass(
        "ElectraForSequenceClassification", "electra", "pair", {**_ELECTRA, **_LABELS}
    ),
    "mpnet": TinyClass("MPNetModel", "mpnet", "text", _TEXT),
    "t5": TinyClass("T5ForConditionalGeneration", "t5", "seq2seq", _T5),
    "t5-encoder": TinyClass("T5EncoderModel", "t5", "text", _T5),
    "mt5": TinyClass("MT5ForConditionalGeneration", "mt5", "seq2seq", _T5),
    "bart": TinyClass("BartForConditionalGeneration", "bart", "seq2seq", _BART),
    "marian": TinyClass(
        "MarianMTModel", "marian", "seq2seq", {**_BART, "pad_token_id": 1, "eos_token_id": 2}
    ),
    "whisper": TinyClass("WhisperForConditionalGeneration", "whisper", "mel", _WHISPER),
    "wav2vec2": TinyClass("Wav2Vec2ForCTC", "wav2vec2", "speech", _WAV),
    "hubert": TinyClass("HubertForCTC", "hubert", "speech", _WAV),
    "wav2vec2-class": TinyClass(
        "Wav2Vec2ForSequenceClassification", "wav2vec2", "speech", {**_WAV, **_LABELS}
    ),
    "vit": TinyClass("ViTForImageClassification", "vit", "image", {**_VIT, **_LABELS}),
    "deit": TinyClass("DeiTForImageClassification", "deit", "image", {**_VIT, **_LABELS}),
    "beit": TinyClass("BeitForImageClassification", "beit", "image", {**_VIT, **_LABELS}),
    "dinov2": TinyClass("Dinov2Model", "dinov2", "image", _VIT),
    "swin": TinyClass("SwinForImageClassification", "swin", "image", {**_SWIN, **_LABELS}),
    "convnext": TinyClass(
        "ConvNextForImageClassification", "convnext", "image", {**_CONVNEXT, **_LABELS}
    ),
    "resnet": TinyClass(
        "ResNetForImageClassification",
        "resnet",
        "image",
        {key: value for key, value in _RESNET.items() if key != "model_type"} | _LABELS,
    ),
    "mobilenet_v2": TinyClass(
        "MobileNetV2ForImageClassification",
        "mobilenet_v2",
        "image",
        {"image_size": 32, "depth_multiplier": 0.35, "min_depth": 8, **_LABELS},
    ),
    "efficientnet": TinyClass(
        "EfficientNetForImageClassification",
        "efficientnet",
        "image",
        {
            "image_size": 32,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.25,
            "hidden_dim": 320,
            **_LABELS,
        },
    ),
    "siglip": TinyClass(
        "SiglipModel",
        "siglip",
        "clip",
        {"text_config": {**_CLIP_TEXT, "max_position_embeddings": 12}, "vision_config": _VIT},
    ),
    "siglip-vision": TinyClass("SiglipVisionModel", "siglip_vision_model", "image", _VIT),
    "clip": TinyClass("CLIPModel", "clip", "clip", _CLIP),
    "clip-vision": TinyClass(
        "CLIPVisionModelWithProjection",
        "clip_vision_model",
        "image",
        {**_VIT, "projection_dim": 24},
    ),
    "detr": TinyClass("DetrForObjectDetection", "detr", "image", _DETR_RESNET, side=64),
    "rt_detr": TinyClass("RTDetrForObjectDetection", "rt_detr", "image", _RT_DETR, side=64),
    "yolos": TinyClass(
        "YolosForObjectDetection",
        "yolos",
        "image",
        {**_VIT, "image_size": [32, 32], "num_detection_tokens": 6, "num_labels": 5},
    ),
    "segformer": TinyClass(
        "SegformerForSemanticSegmentation",
        "segformer",
        "image",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 32,
            **_LABELS,
        },
    ),
    "sam": TinyClass("SamModel", "sam", "sam", _SAM),
}
"""Name of a case to its class."""
