"""Every family: exact counts, exportable graphs, and reproducible outputs."""

import io
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from compressor.models.capabilities.feature_taps import FeatureTaps
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from tests.support.tiny_models import random_inputs

PHONE, CLASSIFIER, ENCODER = AutoGLMPhone(), ImageClassifier(), SentenceEncoder()
OTHER_ENCODERS = {"vision": "vit-lite", "speech": "wav2vec-bridge"}
UNEXPANDED = PHONE.slim(
    PHONE.presets["tiny"],
    vision_padding="tensorflow",
    vision_blocks=[
        {"kernel": 5, "expanded": 4, "out": 8, "stride": 2, "squeeze": True, "expands": False}
    ],
)
CASES = [
    *((PHONE, config) for config in PHONE.presets.values()),
    *(
        (PHONE, PHONE.slim(PHONE.presets[name], **OTHER_ENCODERS))
        for name in ("tiny", "bed-student", "bed-teacher")
    ),
    (PHONE, PHONE.slim(PHONE.presets["9b"], vision="mobilenet", speech="mel-cnn")),
    (PHONE, UNEXPANDED),
    *((CLASSIFIER, config) for config in CLASSIFIER.presets.values()),
    *((ENCODER, config) for config in ENCODER.presets.values()),
]


def count_parameters(module):
    counts = Counter()
    for name, weight in module.named_parameters():
        counts[name.split(".")[0]] += weight.numel()
    return counts


@pytest.mark.parametrize(("family", "config"), CASES)
def test_parameters_equal_those_of_the_module(family, config):
    with torch.device("meta"):
        module = family.build(config)
    assert +Counter(family.parameters(config)) == +count_parameters(module)


SMALL = st.integers(1, 9)
BLOCKS = st.lists(
    st.builds(
        dict,
        kernel=st.sampled_from([1, 3, 5]),
        expanded=SMALL,
        out=SMALL,
        stride=st.sampled_from([1, 2]),
        squeeze=st.booleans(),
    ),
    max_size=3,
)
FIELDS = dict.fromkeys(
    ("vision_width", "vision_stem", "vision_heads", "vision_layers", "vision_ffn"), SMALL
)
FIELDS |= dict.fromkeys(
    ("vision_head_width", "speech_width", "speech_layers", "speech_heads", "speech_ffn"), SMALL
)
FIELDS |= dict.fromkeys(
    ("hidden", "ffn", "encoder_layers", "decoder_layers", "adapter", "fusion_layers"), SMALL
)
FIELDS |= dict.fromkeys(
    ("gate", "queries", "shared", "concepts", "mels", "grid", "key_heads", "head_width"), SMALL
)
FIELDS |= {
    "vision": st.sampled_from(["mobilenet", "vit-lite"]),
    "vision_blocks": BLOCKS,
    "tile": st.integers(1, 3),
}
FIELDS |= {"speech": st.sampled_from(["mel-cnn", "wav2vec-bridge"]), "group": SMALL}


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries(FIELDS))
def test_parameters_of_any_phone_config_equal_those_of_the_module(fields):
    fields["screen_size"] = 8 * fields.pop("tile") * fields["grid"]
    fields["heads"] = fields.pop("group") * fields["key_heads"]
    fields["head_width"] *= 2
    fields["speech_head_width"] = fields["head_width"]
    config = PHONE.slim(PHONE.presets["tiny"], **fields)
    with torch.device("meta"):
        module = PHONE.build(config)
    assert +Counter(PHONE.parameters(config)) == +count_parameters(module)


@pytest.mark.parametrize(
    ("family", "config"),
    [case for case in CASES if sum(case[0].parameters(case[1]).values()) < 1e7],
)
def test_macs_equal_the_flop_counter_of_torch(family, config):
    module = family.build(config).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(**random_inputs(family, config, 1))
    assert counter.get_total_flops() / 2 == pytest.approx(family.macs(config), rel=1e-6)


def test_the_9b_preset_has_the_documented_parts():
    billions = {part: count / 1e9 for part, count in PHONE.parameters(PHONE.presets["9b"]).items()}
    table = {"text_encoder": 3.2, "text_decoder": 3.2, "vision": 1.4, "speech": 0.8, "fusion": 0.4}
    assert {part: billions[part] for part in table} == pytest.approx(table, rel=0.03)
    assert sum(billions.values()) <= 9.0


def test_the_student_is_smaller_than_the_teacher():
    teacher, student = PHONE.presets["bed-teacher"], PHONE.presets["bed-student"]
    assert sum(PHONE.parameters(teacher).values()) > 1.5 * sum(PHONE.parameters(student).values())
    assert PHONE.macs(teacher) > 1.5 * PHONE.macs(student)


@pytest.mark.parametrize("dimensions", [{}, OTHER_ENCODERS])
def test_the_phone_model_exports_with_dynamic_batch_and_lengths(dimensions):
    import onnxruntime

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, screen, tokens, mel):
            return self.inner(screen, tokens, mel)["logits"]

    config = PHONE.slim(PHONE.presets["tiny"], **dimensions)
    torch.manual_seed(0)
    module = PHONE.build(config)
    shapes = {
        spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in PHONE.signature(config).inputs
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporter
        program = torch.onnx.export(
            Logits().eval(),
            kwargs=random_inputs(PHONE, config, 3),
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    for batch, tokens, frames in ((1, 12, 32), (5, 12, 32), (5, 17, 45)):
        feed = random_inputs(
            PHONE, config.model_copy(update={"tokens": tokens, "frames": frames}), batch
        )
        with torch.inference_mode():
            expected = module(**feed)["logits"].numpy()
        (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
        assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("family", "config"),
    [(family, family.presets["tiny"]) for family in (PHONE, CLASSIFIER, ENCODER)],
)
def test_outputs_and_features_are_finite_and_reproducible(family, config):
    module = family.build(config).eval()
    feed = random_inputs(family, config, 5)
    with torch.inference_mode():
        first, second = module(**feed), module(**feed)
    taps = family.capability(FeatureTaps, config)
    for name in (*family.signature(config).outputs, *(taps.names if taps else ())):
        assert torch.equal(first[name], second[name])
        assert len(first[name]) == 5
        assert first[name].isfinite().all()


def test_describing_models_imports_no_torch():
    code = (
        "import sys\n"
        "from compressor.config.discovery import FAMILIES, load, names\n"
        "from compressor.models.capabilities.cuttable_axes import CuttableAxes\n"
        "for family in (load(FAMILIES, name) for name in names(FAMILIES) if name != 'tiny'):\n"
        "    for config in family.presets.values():\n"
        "        family.macs(config) + sum(family.parameters(config).values())\n"
        "        family.capability(CuttableAxes, config)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
