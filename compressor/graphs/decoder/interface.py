"""Interface of decoder graphs: names of inputs, outputs, files and metadata.

Shapes: M patches of D values, W rows of image embeddings.
"""

from __future__ import annotations

INPUT_IDS, ATTENTION_MASK, LOGITS = "input_ids", "attention_mask", "logits"
LOGITS_TO_KEEP = "logits_to_keep"
DECODER_TOKENS = "decoder_input_ids"
"""Tokens of a decoder behind an encoder in batches; in its graph they are ``INPUT_IDS``."""
IMAGE_EMBEDS, POSITION_OFFSETS = "image_embeds", "position_offsets"
PAST_PREFIX, PRESENT_PREFIX = "past_key_values.", "present."
CROSS_PREFIX, ENCODER_MASK = "cross_key_values.", "encoder_attention_mask"
"""Inputs of a decoder behind an encoder: keys and values of the encoder's output, and its mask."""
CONTEXT_LENGTH_KEY = "autoglm_compress.context_length"
"""Metadata key for the number of positions that a decoder attends to."""
TARGET_KEY = "autoglm_compress.target"
"""Metadata key for the operators of a decoder, which decide how its cache is kept: `onnxruntime`,
`portable`, or `traced` from the torch module."""
TRACED = "traced"
GROWING_TARGETS = frozenset({"portable", TRACED})
"""Targets whose graphs return keys and values longer than those that they read."""
BOUNDED_CACHES_KEY = "autoglm_compress.bounded_caches"
"""Metadata key of a decoder for the caches that need not hold all positions (``cache_bounds``)."""
VISION_MODEL = "vision.onnx"
"""File of the vision tower: `pixel_values` float32 [M, D] of one image and `image_grid_thw`
int64 [1, 3] in, `image_embeds` [W, H] out. Other classes take the arrays of one image or tile."""
IMAGE_TOKEN_KEY = "autoglm_compress.image_token"  # noqa: S105  no password
"""Metadata key of a traced vision tower for the token that an image embedding replaces."""
FIXED_IMAGES_KEY = "autoglm_compress.fixed_images"
"""Metadata key of a traced vision tower for the arrays that its class reads as numbers, such as the
sizes of an image: JSON of names and values. It computes images with these values alone."""
ENCODER_MODEL = "encoder.onnx"
"""File of the encoder of an encoder-decoder: its own inputs in, the decoder's keys and values of
its output out."""
MERGE_SIZE_KEY = "autoglm_compress.merge"
"""Metadata key of the vision tower for the number of patches, in height and in width, that are
merged into one embedding."""
