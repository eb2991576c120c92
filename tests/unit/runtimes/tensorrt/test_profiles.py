"""Optimization profiles against inputs and samples, and against the real builder."""

from types import SimpleNamespace

import pytest
from onnx import TensorProto, helper
from pydantic import ValidationError

from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.tensorrt.profiles import (
    Profile,
    expand_profiles,
    missing_profiles,
    profile_problems,
)
from tests.support.tensorrt_graphs import graph, node, refusal

X, Y = InputSpec("x", "float32", ("n", 4)), InputSpec("fixed", "float32", (2, 4))


def profile(low, best, high):
    return Profile(min=low, opt=best, max=high)


def test_a_pattern_applies_to_all_inputs_that_match_it():
    inputs = [SimpleNamespace(name=name) for name in ("ids", "past.0.key", "past.1.key")]
    first, second = profile((1,), (1,), (1,)), profile((2,), (2,), (2,))
    profiles = {"past.*": first, "past.1.key": second, "gone.*": first}
    expanded = expand_profiles(profiles, inputs)
    assert expanded == {"past.0.key": first, "past.1.key": second, "gone.*": first}


@pytest.mark.parametrize(
    ("profiles", "problems"),
    [
        ({"x": profile((1, 4), (2, 4), (8, 4))}, []),
        ({}, ["input x [n, 4]: it is dynamic, and has no profile"]),
        (
            {"x": profile((1, 3), (2, 3), (8, 3))},
            ["profile x: dimension 1 is fixed to 4, but the profile has 3, 3, 3"],
        ),
        (
            {"x": profile((1,), (2,), (8,))},
            ["profile x: min [1] has 1 dimensions, the input [n, 4] has 2"],
        ),
    ],
    ids=["fits", "none", "size", "rank"],
)
def test_tensorrt_refuses_the_profiles_that_have_problems(profiles, problems):
    assert missing_profiles([X], profiles) + profile_problems([X], profiles) == problems
    assert (refusal(graph([node("Relu", "x")]), profiles=profiles) is not None) == bool(problems)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 4), (2, 4), (8, 4)), "dimension 0: min 4, opt 2 and max 8 are not in order"),
        (((1, 4), (2, 4), (8,)), "have different numbers of dimensions"),
    ],
    ids=["falls", "rank"],
)
def test_shapes_that_contradict_each_other_are_no_profile(shapes, message):
    with pytest.raises(ValidationError, match=message):
        profile(*shapes)


def test_a_profile_of_no_input_is_a_problem():
    profiles = {"x": profile((1, 4), (1, 4), (8, 4)), "z": profile((1,), (1,), (1,))}
    assert profile_problems([X, Y], profiles) == [
        "profile z: the graph has no such input; its inputs are x, fixed"
    ]


def test_samples_outside_a_profile_are_a_problem():
    wide = InputSpec("x", "float32", ("n", "length"))
    profiles = {"x": profile((1, 4), (1, 4), (8, 9))}
    assert profile_problems([wide], profiles, {"x": (64, 12)}) == [
        "profile x: dimension 1 ranges from 4 to 9, but is 12 in the samples"
    ]
    assert profile_problems([wide], profiles, {"x": (64, 9)}) == []  # 64 is the batch


@pytest.mark.parametrize(("low", "fits"), [(8, True), (9, False)])
def test_dimensions_of_one_name_need_a_size_in_common(low, fits):
    model = graph([node("Add", "x z")])
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4]))
    profiles = {"x": profile((1, 4), (2, 4), (8, 4)), "z": profile((low, 4), (9, 4), (9, 4))}
    problems = profile_problems([X, InputSpec("z", "float32", ("n", 4))], profiles)
    expected = "profile z: n ranges from 9 to 9, but from 1 to 8 in x"
    assert problems == ([] if fits else [expected])
    assert (refusal(model, profiles=profiles) is None) == fits
