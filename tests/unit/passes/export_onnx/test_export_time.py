"""The foretold time of an export follows from bytes, compared tokens and the way of exporting."""

from dataclasses import replace

import pytest

from compressor.data.contract import DataFacts, InputFacts
from compressor.engine.contract import PlanContext
from compressor.models.architecture import Architecture
from compressor.models.facts import planned_facts
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.step import ExportOnnx
from tests.support.decoders import FAMILY


def seconds(model, tokens=None, **parity):
    inputs = (InputFacts("input_ids", "int64", (tokens,)),)
    context = PlanContext({}, {"test": DataFacts(inputs=inputs)})
    config = ExportOnnxConfig.model_validate({"parity": parity})
    return ExportOnnx().estimate(config, model, context).seconds


@pytest.fixture
def decoder():
    return planned_facts(Architecture(FAMILY, FAMILY.presets["tiny-llama"]))


def test_time_grows_with_the_bytes_of_the_weights(decoder):
    small, large = (replace(decoder, size_bytes=size) for size in (10**6, 7 * 10**9))
    assert seconds(large) > seconds(small) + 60


def test_time_grows_with_the_tokens_that_are_compared(decoder):
    model = replace(decoder, macs=10**9)
    short, long = (seconds(model, tokens) - seconds(model, 1) for tokens in (101, 1001))
    assert long == pytest.approx(10 * short, rel=0.01)
    more = seconds(model, 1001, num_samples=8) - seconds(model, 1, num_samples=8)
    assert more == pytest.approx(2 * long, rel=0.01)


def test_a_decoder_that_is_built_takes_less_than_a_model_that_is_traced(decoder):
    family = AutoGLMPhone()
    traced = planned_facts(Architecture(family, family.presets["tiny"]))
    assert seconds(decoder, 8) < seconds(traced)
