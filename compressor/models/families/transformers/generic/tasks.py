"""Tasks of transformers' classes, by the library's own lists of classes; no torch.

A task decides which arrays a class takes, which of its outputs are kept, and the unit of its MACs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Modality = Literal["text", "image", "audio", "image and text", "audio and text"]


@dataclass(frozen=True, slots=True)
class Task:
    """A task that classes of transformers solve."""

    name: str
    """Name for users, such as ``masked-lm``."""
    mapping: str
    """Constant of ``transformers.models.auto.modeling_auto`` with the classes of the task."""
    inputs: Modality
    outputs: tuple[str, ...] = ("logits",)
    """Fields of the class's result that are kept if it returns them, in this order."""
    encodes: bool = True
    """True if texts are padded and masked; False for windows of a language model."""
    decodes: bool = False
    """True for a decoder with inputs of its own behind an encoder."""
    chooses: bool = False
    """True if each sample has several texts, one for each choice."""
    classes: str | None = None
    """Field of config.json with the number of classes of ``logits``."""


_HIDDEN = ("last_hidden_state", "pooler_output")
_EMBEDS = ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds")
_SEGMENTS = ("class_queries_logits", "masks_queries_logits", "logits", "pred_boxes", "pred_masks")
_LABELS = "num_labels"
_VOCABULARY = "vocab_size"

TASKS: tuple[Task, ...] = (
    Task(
        "image-text",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        "image and text",
        encodes=False,
        classes=_VOCABULARY,
    ),
    Task(
        "causal-lm",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "text",
        encodes=False,
        classes=_VOCABULARY,
    ),
    Task(
        "speech-seq2seq",
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
        "audio",
        decodes=True,
        classes=_VOCABULARY,
    ),
    Task(
        "seq2seq",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "text",
        decodes=True,
        classes=_VOCABULARY,
    ),
    Task("masked-lm", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", "text", classes=_VOCABULARY),
    Task(
        "sequence-classification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "text",
        classes=_LABELS,
    ),
    Task(
        "token-classification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        "text",
        classes=_LABELS,
    ),
    Task(
        "question-answering",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        "text",
        ("start_logits", "end_logits"),
    ),
    Task(
        "document-question-answering",
        "MODEL_FOR_DOCUMENT_QUESTION_ANSWERING_MAPPING_NAMES",
        "text",
        ("start_logits", "end_logits"),
    ),
    Task("table-question-answering", "MODEL_FOR_TABLE_QUESTION_ANSWERING_MAPPING_NAMES", "text"),
    Task("multiple-choice", "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES", "text", chooses=True),
    Task(
        "next-sentence-prediction",
        "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES",
        "text",
    ),
    Task("ctc", "MODEL_FOR_CTC_MAPPING_NAMES", "audio", classes=_VOCABULARY),
    Task(
        "audio-classification",
        "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
        "audio",
        classes=_LABELS,
    ),
    Task(
        "audio-frame-classification",
        "MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES",
        "audio",
        classes=_LABELS,
    ),
    Task(
        "audio-xvector",
        "MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES",
        "audio",
        ("logits", "embeddings"),
    ),
    Task(
        "image-classification",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        "image",
        classes=_LABELS,
    ),
    Task(
        "video-classification",
        "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
        "image",
        classes=_LABELS,
    ),
    Task(
        "visual-question-answering",
        "MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING_NAMES",
        "image and text",
    ),
    Task(
        "zero-shot-object-detection",
        "MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES",
        "image and text",
        ("logits", "pred_boxes"),
    ),
    Task(
        "object-detection",
        "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
        "image",
        ("logits", "pred_boxes"),
    ),
    Task(
        "semantic-segmentation",
        "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
        "image",
        classes=_LABELS,
    ),
    Task(
        "image-segmentation",
        "MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES",
        "image",
        _SEGMENTS,
    ),
    Task(
        "universal-segmentation",
        "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES",
        "image",
        _SEGMENTS,
    ),
    Task(
        "instance-segmentation",
        "MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES",
        "image",
        _SEGMENTS,
    ),
    Task(
        "depth-estimation",
        "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
        "image",
        ("predicted_depth",),
    ),
    Task(
        "image-to-image",
        "MODEL_FOR_IMAGE_TO_IMAGE_MAPPING_NAMES",
        "image",
        ("reconstruction",),
    ),
    Task(
        "mask-generation",
        "MODEL_FOR_MASK_GENERATION_MAPPING_NAMES",
        "image",
        ("pred_masks", "iou_scores"),
    ),
    Task(
        "zero-shot-image-classification",
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        "image and text",
        _EMBEDS,
    ),
)
"""Tasks in the order in which a class is looked up: some classes are listed for several."""

_ALL_CLASSES = "MODEL_MAPPING_NAMES"
EMBEDDING_TASKS: dict[Modality, Task] = {
    "text": Task("text-embedding", _ALL_CLASSES, "text", _HIDDEN),
    "image": Task("image-embedding", _ALL_CLASSES, "image", (*_HIDDEN, "image_embeds")),
    "audio": Task("audio-embedding", _ALL_CLASSES, "audio", _HIDDEN),
}
"""Modality of a class's main input to the task of classes that no list names."""


def task_of(class_name: str, main_input: str) -> Task:
    """Return the task of a class; that of embeddings if no list of transformers names it.

    Args:
        class_name: name of the class.
        main_input: its ``main_input_name``, such as ``pixel_values``.
    """
    from transformers.models.auto import modeling_auto

    for task in TASKS:
        names = getattr(modeling_auto, task.mapping, {}).values()
        if any(class_name in alternatives for alternatives in map(_as_tuple, names)):
            return task
    if "pixel" in main_input:
        return EMBEDDING_TASKS["image"]
    is_audio = main_input in {"input_features", "input_values"}
    return EMBEDDING_TASKS["audio" if is_audio else "text"]


def _as_tuple(names: object) -> tuple[str, ...]:
    return tuple(names) if isinstance(names, list | tuple) else (str(names),)
