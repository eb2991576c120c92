"""Tiny random models of further encoders, vision, speech and encoder-decoder classes.

No table and hardly a test names them; ``benchmarks/intake`` takes them through every pass.
"""

from __future__ import annotations

from typing import Any

from tests.support.encoder_classes import CLASSES, TinyClass

_LABELS = {"num_labels": 4}
_TEXT = dict(CLASSES["bert-base"].fields)
_ROBERTA = dict(CLASSES["xlm-roberta-embed"].fields)
_VIT = dict(CLASSES["dinov2"].fields)
_BART = dict(CLASSES["bart"].fields)
_T5 = dict(CLASSES["t5"].fields)
_WAV = dict(CLASSES["wav2vec2"].fields)
_CLIP = dict(CLASSES["clip"].fields)
_SWIN = {name: value for name, value in CLASSES["swin"].fields.items() if name not in _LABELS}
_DETR_RESNET = dict(CLASSES["detr"].fields)
_RT_DETR = dict(CLASSES["rt_detr"].fields)
_D_FINE = {
    **_RT_DETR,
    "backbone_config": {
        "model_type": "hgnet_v2",
        "stem_channels": [3, 8, 8],
        "embedding_size": 8,
        "stage_in_channels": [8, 16, 16, 24],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [16, 16, 24, 32],
        "hidden_sizes": [16, 16, 24, 32],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [1, 1, 1, 1],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "encoder_in_channels": [16, 24, 32],
    "lqe_hidden_dim": 8,
}
_BACKBONE_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_DPT = {
    **_VIT,
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 16,
}
_BLIP = {
    "text_config": {
        **_TEXT,
        "encoder_hidden_size": 32,
        "projection_dim": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sep_token_id": 2,
        "pad_token_id": 0,
    },
    "vision_config": _VIT,
    "projection_dim": 16,
    "image_text_hidden_size": 16,
}
_XLNET = {"vocab_size": 96, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
_PYRAMID = {
    "depths": [1, 1, 1, 1],
    "sr_ratios": [8, 4, 2, 1],
    "hidden_sizes": [16, 16, 32, 32],
    "num_attention_heads": [1, 2, 2, 4],
    "mlp_ratios": [2, 2, 2, 2],
}
_FRAMES = {**_VIT, "num_frames": 4, **_LABELS}
_SERIES = {
    "num_input_channels": 2,
    "context_length": 32,
    "patch_length": 8,
    "patch_stride": 8,
    "d_model": 16,
    "prediction_length": 8,
}


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


_TEXT_CLASSES = {
    "camembert": TinyClass("CamembertForMaskedLM", "camembert", "text", _ROBERTA),
    "xlnet": TinyClass("XLNetForSequenceClassification", "xlnet", "text", {**_XLNET, **_LABELS}),
    "roformer": TinyClass(
        "RoFormerForMaskedLM", "roformer", "pair", {**_TEXT, "embedding_size": 16}
    ),
    "big_bird": TinyClass(
        "BigBirdForSequenceClassification",
        "big_bird",
        "pair",
        {**_TEXT, **_LABELS, "block_size": 4, "num_random_blocks": 1},
    ),
    "longformer": TinyClass(
        "LongformerForSequenceClassification",
        "longformer",
        "pair",
        {**_TEXT, **_LABELS, "attention_window": [8, 8]},
    ),
    "deberta": TinyClass(
        "DebertaForSequenceClassification",
        "deberta",
        "text",
        {
            **_TEXT,
            **_LABELS,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "type_vocab_size": 0,
        },
    ),
    "rembert": TinyClass(
        "RemBertForTokenClassification",
        "rembert",
        "pair",
        {**_TEXT, **_LABELS, "input_embedding_size": 16, "output_embedding_size": 24},
    ),
    "esm": TinyClass(
        "EsmForMaskedLM",
        "esm",
        "text",
        {**_TEXT, "position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 4},
    ),
    "fnet": TinyClass("FNetForSequenceClassification", "fnet", "pair", {**_TEXT, **_LABELS}),
    "mobilebert": TinyClass(
        "MobileBertForSequenceClassification",
        "mobilebert",
        "pair",
        {
            **_TEXT,
            **_LABELS,
            "embedding_size": 16,
            "intra_bottleneck_size": 16,
            "true_hidden_size": 16,
            "num_feedforward_networks": 2,
        },
    ),
    "squeezebert": TinyClass(
        "SqueezeBertForSequenceClassification",
        "squeezebert",
        "pair",
        {**_TEXT, **_LABELS, "embedding_size": 32},
    ),
    "funnel": TinyClass(
        "FunnelForSequenceClassification",
        "funnel",
        "text",
        {
            "vocab_size": 96,
            "block_sizes": [1, 1],
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 48,
            **_LABELS,
        },
    ),
    "convbert": TinyClass(
        "ConvBertForSequenceClassification",
        "convbert",
        "pair",
        {**_TEXT, **_LABELS, "embedding_size": 16, "conv_kernel_size": 3, "head_ratio": 2},
    ),
    "nystromformer": TinyClass(
        "NystromformerForSequenceClassification", "nystromformer", "pair", {**_TEXT, **_LABELS}
    ),
    "layoutlm": TinyClass(
        "LayoutLMForTokenClassification",
        "layoutlm",
        "pair",
        {**_TEXT, **_LABELS, "max_2d_position_embeddings": 64},
    ),
    "luke": TinyClass(
        "LukeForTokenClassification",
        "luke",
        "pair",
        {**_TEXT, **_LABELS, "entity_vocab_size": 16, "entity_emb_size": 16},
    ),
    "canine": TinyClass(
        "CanineForSequenceClassification",
        "canine",
        "pair",
        {
            **_TEXT,
            **_LABELS,
            "num_hash_buckets": 64,
            "local_transformer_stride": 8,
            "downsampling_rate": 4,
        },
    ),
    "dpr": TinyClass("DPRContextEncoder", "dpr", "pair", {**_TEXT, "projection_dim": 16}),
    "bert-choice": TinyClass("BertForMultipleChoice", "bert", "pair", _TEXT),
    "bart-class": TinyClass(
        "BartForSequenceClassification",
        "bart",
        "text",
        {**_BART, **_LABELS, "eos_token_id": 2},
    ),
    "bart-base": TinyClass("BartModel", "bart", "seq2seq", _BART),
    "t5-base": TinyClass("T5Model", "t5", "seq2seq", _T5),
    "pegasus": TinyClass("PegasusForConditionalGeneration", "pegasus", "seq2seq", _BART),
    "mbart": TinyClass("MBartForConditionalGeneration", "mbart", "seq2seq", _BART),
    "m2m_100": TinyClass("M2M100ForConditionalGeneration", "m2m_100", "seq2seq", _BART),
    "bert2bert": TinyClass(
        "EncoderDecoderModel",
        "encoder-decoder",
        "seq2seq",
        {
            "encoder": {"model_type": "bert", **_TEXT},
            "decoder": {
                "model_type": "bert",
                **_TEXT,
                "is_decoder": True,
                "add_cross_attention": True,
            },
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
        },
    ),
}

_AUDIO_CLASSES = {
    "data2vec-audio": TinyClass(
        "Data2VecAudioForCTC",
        "data2vec-audio",
        "speech",
        {
            **_without(_WAV, "feat_extract_norm", "do_stable_layer_norm"),
            "num_conv_pos_embeddings": 2,
            "conv_pos_kernel_size": 5,
        },
    ),
    "wavlm": TinyClass(
        "WavLMForSequenceClassification",
        "wavlm",
        "speech",
        {**_WAV, **_LABELS, "num_buckets": 16, "max_bucket_distance": 32},
    ),
    "unispeech": TinyClass("UniSpeechForCTC", "unispeech", "speech", _WAV),
    "wav2vec2-bert": TinyClass(
        "Wav2Vec2BertForCTC",
        "wav2vec2-bert",
        "speech",
        {
            **{name: _WAV[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")},
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "feature_projection_input_dim": 16,
            "conv_depthwise_kernel_size": 3,
            "left_max_position_embeddings": 8,
            "right_max_position_embeddings": 4,
        },
    ),
    "audio-spectrogram-transformer": TinyClass(
        "ASTForAudioClassification",
        "audio-spectrogram-transformer",
        "speech",
        {
            **_without(_VIT, "image_size"),
            "max_length": 32,
            "num_mel_bins": 16,
            "frequency_stride": 4,
            "time_stride": 4,
            **_LABELS,
        },
    ),
    "clap": TinyClass(
        "ClapModel",
        "clap",
        "text",
        {
            "text_config": {**_TEXT, "projection_dim": 16},
            "audio_config": {
                "window_size": 4,
                "num_mel_bins": 16,
                "spec_size": 64,
                "patch_size": 4,
                "patch_stride": [4, 4],
                "num_classes": 4,
                "hidden_size": 64,
                "patch_embeds_hidden_size": 16,
                "depths": [1, 1, 1],
                "num_attention_heads": [2, 2, 4],
                "projection_dim": 16,
                "mlp_ratio": 2.0,
            },
            "projection_dim": 16,
        },
    ),
    "whisper-class": TinyClass(
        "WhisperForAudioClassification",
        "whisper",
        "mel",
        {**CLASSES["whisper"].fields, **_LABELS},
    ),
    "speech_to_text": TinyClass(
        "Speech2TextForConditionalGeneration",
        "speech_to_text",
        "mel",
        {
            **_without(_BART, "max_position_embeddings"),
            "max_source_positions": 128,
            "max_target_positions": 64,
            "input_feat_per_channel": 16,
            "conv_channels": 32,
            "num_conv_layers": 2,
            "conv_kernel_sizes": [5, 5],
        },
    ),
    "moonshine": TinyClass(
        "MoonshineForConditionalGeneration",
        "moonshine",
        "mel",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 48,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "encodec": TinyClass(
        "EncodecModel",
        "encodec",
        "speech",
        {
            "num_filters": 8,
            "hidden_size": 16,
            "codebook_size": 16,
            "codebook_dim": 16,
            "upsampling_ratios": [4, 2],
            "num_lstm_layers": 1,
        },
    ),
}

_VISION_CLASSES = {
    "data2vec-vision": TinyClass(
        "Data2VecVisionForImageClassification", "data2vec-vision", "image", {**_VIT, **_LABELS}
    ),
    "dinov2_with_registers": TinyClass(
        "Dinov2WithRegistersModel",
        "dinov2_with_registers",
        "image",
        {**_VIT, "num_register_tokens": 2},
    ),
    "dinov3_vit": TinyClass(
        "DINOv3ViTModel", "dinov3_vit", "image", {**_VIT, "num_register_tokens": 2}
    ),
    "regnet": TinyClass(
        "RegNetForImageClassification",
        "regnet",
        "image",
        {
            "embedding_size": 16,
            "hidden_sizes": [16, 24, 32, 48],
            "depths": [1, 1, 1, 1],
            "groups_width": 8,
            **_LABELS,
        },
    ),
    "poolformer": TinyClass(
        "PoolFormerForImageClassification",
        "poolformer",
        "image",
        {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], **_LABELS},
    ),
    "mobilevit": TinyClass(
        "MobileViTForImageClassification",
        "mobilevit",
        "image",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 12, 16, 16, 16, 32],
            **_LABELS,
        },
        side=64,
    ),
    "levit": TinyClass(
        "LevitForImageClassification",
        "levit",
        "image",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            **_LABELS,
        },
        side=64,
    ),
    "pvt_v2": TinyClass(
        "PvtV2ForImageClassification",
        "pvt_v2",
        "image",
        {"image_size": 64, **_PYRAMID, "num_encoder_blocks": 4, **_LABELS},
        side=64,
    ),
    "swinv2": TinyClass("Swinv2ForImageClassification", "swinv2", "image", {**_SWIN, **_LABELS}),
    "convnextv2": TinyClass(
        "ConvNextV2ForImageClassification", "convnextv2", "image", CLASSES["convnext"].fields
    ),
    "upernet": TinyClass(
        "UperNetForSemanticSegmentation",
        "upernet",
        "image",
        {
            "hidden_size": 16,
            "auxiliary_in_channels": 32,
            "auxiliary_channels": 8,
            "num_labels": 4,
            "backbone_config": {
                "model_type": "convnext",
                "hidden_sizes": [16, 24, 32, 48],
                "depths": [1, 1, 1, 1],
                "image_size": 64,
                **_BACKBONE_STAGES,
            },
        },
        side=64,
    ),
    "depth_anything": TinyClass(
        "DepthAnythingForDepthEstimation",
        "depth_anything",
        "image",
        {
            "backbone_config": {
                "model_type": "dinov2",
                **_VIT,
                "num_hidden_layers": 4,
                **_BACKBONE_STAGES,
                "reshape_hidden_states": False,
            },
            "patch_size": 8,
            "reassemble_hidden_size": 32,
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
            "head_hidden_size": 8,
        },
    ),
    "dpt": TinyClass("DPTForDepthEstimation", "dpt", "image", _DPT),
    "glpn": TinyClass(
        "GLPNForDepthEstimation",
        "glpn",
        "image",
        {
            **_PYRAMID,
            "num_encoder_blocks": 4,
            "patch_sizes": [7, 3, 3, 3],
            "strides": [4, 2, 2, 2],
            "decoder_hidden_size": 16,
        },
        side=64,
    ),
    "conditional_detr": TinyClass(
        "ConditionalDetrForObjectDetection", "conditional_detr", "image", _DETR_RESNET, side=64
    ),
    "d_fine": TinyClass("DFineForObjectDetection", "d_fine", "image", _D_FINE, side=64),
    "deformable_detr": TinyClass(
        "DeformableDetrForObjectDetection",
        "deformable_detr",
        "image",
        {
            **_DETR_RESNET,
            "num_feature_levels": 2,
            "backbone_config": {
                **_DETR_RESNET["backbone_config"],
                "out_features": ["stage3", "stage4"],
            },
            "two_stage": True,
            "two_stage_num_proposals": 8,
            "with_box_refine": True,
        },
        side=64,
    ),
    "rt_detr_v2": TinyClass("RTDetrV2ForObjectDetection", "rt_detr_v2", "image", _RT_DETR, side=64),
    "swin2sr": TinyClass(
        "Swin2SRForImageSuperResolution",
        "swin2sr",
        "image",
        {
            "image_size": 32,
            "patch_size": 1,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
            "upscale": 2,
        },
    ),
    "vitpose": TinyClass(
        "VitPoseForPoseEstimation",
        "vitpose",
        "image",
        {
            "backbone_config": {
                "model_type": "vitpose_backbone",
                **_VIT,
                "image_size": [32, 32],
                "patch_size": [8, 8],
                "out_features": ["stage2"],
            },
            "num_labels": 5,
        },
    ),
    "videomae": TinyClass(
        "VideoMAEForVideoClassification", "videomae", "image", {**_FRAMES, "tubelet_size": 2}
    ),
    "timesformer": TinyClass("TimesformerForVideoClassification", "timesformer", "image", _FRAMES),
}

_OTHER_CLASSES = {
    "trocr": TinyClass(
        "VisionEncoderDecoderModel",
        "vision-encoder-decoder",
        "image",
        {
            "encoder": {"model_type": "vit", **_VIT},
            "decoder": {
                "model_type": "trocr",
                "vocab_size": 96,
                "d_model": 32,
                "decoder_layers": 2,
                "decoder_attention_heads": 4,
                "decoder_ffn_dim": 48,
                "max_position_embeddings": 64,
                "cross_attention_hidden_size": 32,
                "is_decoder": True,
                "add_cross_attention": True,
            },
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
        },
    ),
    "pix2struct": TinyClass(
        "Pix2StructForConditionalGeneration",
        "pix2struct",
        "image",
        {
            "text_config": {
                "vocab_size": 96,
                "hidden_size": 32,
                "d_kv": 8,
                "d_ff": 48,
                "num_layers": 2,
                "num_heads": 4,
                "decoder_start_token_id": 0,
            },
            "vision_config": {
                "hidden_size": 32,
                "patch_embed_hidden_size": 192,
                "d_ff": 48,
                "d_kv": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "seq_len": 16,
            },
        },
    ),
    "blip": TinyClass("BlipForConditionalGeneration", "blip", "clip", _BLIP),
    "blip-vqa": TinyClass("BlipForQuestionAnswering", "blip", "clip", _BLIP),
    "blip-itm": TinyClass("BlipForImageTextRetrieval", "blip", "clip", _BLIP),
    "vilt": TinyClass(
        "ViltForQuestionAnswering",
        "vilt",
        "clip",
        {**_TEXT, "image_size": 32, "patch_size": 8, **_LABELS},
    ),
    "clip-text": TinyClass(
        "CLIPTextModelWithProjection",
        "clip_text_model",
        "text",
        {**_CLIP["text_config"], "projection_dim": 24},
    ),
    "chinese_clip": TinyClass(
        "ChineseCLIPModel",
        "chinese_clip",
        "clip",
        {"text_config": _TEXT, "vision_config": _VIT, "projection_dim": 24},
    ),
    "clipseg": TinyClass(
        "CLIPSegForImageSegmentation",
        "clipseg",
        "clip",
        {
            **_CLIP,
            "extract_layers": [0, 1],
            "reduce_dim": 16,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 24,
        },
    ),
    "vision-text-dual-encoder": TinyClass(
        "VisionTextDualEncoderModel",
        "vision-text-dual-encoder",
        "clip",
        {
            "vision_config": {"model_type": "vit", **_VIT},
            "text_config": {"model_type": "bert", **_TEXT},
            "projection_dim": 24,
        },
    ),
    "owlvit": TinyClass(
        "OwlViTForObjectDetection",
        "owlvit",
        "clip",
        {
            "text_config": {**_CLIP["text_config"], "max_position_embeddings": 16},
            "vision_config": _VIT,
            "projection_dim": 32,
        },
    ),
    "patchtst": TinyClass(
        "PatchTSTForPrediction",
        "patchtst",
        "series",
        {**_SERIES, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48},
    ),
}

FURTHER_CLASSES: dict[str, TinyClass] = {
    **_TEXT_CLASSES,
    **_AUDIO_CLASSES,
    **_VISION_CLASSES,
    **_OTHER_CLASSES,
}
"""Name of a case to its class."""
