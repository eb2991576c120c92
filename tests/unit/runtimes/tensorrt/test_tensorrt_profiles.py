"""Profiles against inputs and samples, and against the real builder."""

import pytest

from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.tensorrt.profiles import Profile, profile_problems
from tests.unit.runtimes.tensorrt_graphs import graph, node, refusal

X, Y = InputSpec("x", "float32", ("n", 4)), InputSpec("fixed", "float32", (2, 4))


SHORT = ("min [1]", "opt [2]", "max [8]")


def profile(low, best, high):
    return Profile(min=low, opt=best, max=high)


@pytest.mark.parametrize(
    ("profiles", "told"),
    [
        ({"x": profile((1, 4), (2, 4), (8, 4))}, []),
        ({}, ["input x [n, 4]: it varies, and has no profile"]),
        (
            {"x": profile((4, 4), (2, 4), (8, 4))},
            ["profile x: dimension 0: min 4, opt 2 and max 8 do not rise"],
        ),
        (
            {"x": profile((1, 3), (2, 3), (8, 3))},
            ["profile x: dimension 1 is always 4, and the profile has 3, 3, 3"],
        ),
        (
            {"x": profile((1,), (2,), (8,))},
            [f"profile x: {one} has 1 dimensions, the input [n, 4] has 2" for one in SHORT],
        ),
    ],
    ids=["fits", "none", "falls", "size", "rank"],
)
def test_what_is_complained_of_tensorrt_refuses(profiles, told):
    assert profile_problems([X], profiles) == told
    assert (refusal(graph([node("Relu", "x")]), profiles=profiles) is not None) == bool(told)


def test_a_profile_of_no_input_and_samples_beyond_it():
    profiles = {"x": profile((1, 4), (1, 4), (8, 4)), "z": profile((1,), (1,), (1,))}
    wide = InputSpec("x", "float32", ("n", "length"))
    assert profile_problems([X, Y], profiles) == [
        "profile z: the graph has no such input; it has x, fixed"
    ]
    assert profile_problems([wide], {"x": profile((1, 4), (1, 4), (8, 9))}, {"x": (64, 12)}) == [
        "profile x: dimension 1 is from 4 to 9, and 12 in the samples"
    ]
    assert (
        profile_problems([wide], {"x": profile((1, 4), (1, 4), (8, 9))}, {"x": (64, 9)}) == []
    )  # 64 is the batch


@pytest.mark.parametrize(("low", "fits"), [(8, True), (9, False)])
def test_dimensions_of_one_name_need_a_size_in_common(low, fits):
    from onnx import TensorProto, helper

    model = graph([node("Add", "x z")])
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4]))
    profiles = {"x": profile((1, 4), (2, 4), (8, 4)), "z": profile((low, 4), (9, 4), (9, 4))}
    found = profile_problems([X, InputSpec("z", "float32", ("n", 4))], profiles)
    assert found == ([] if fits else ["profile z: n is from 9 to 9, and from 1 to 8 in x"])
    assert (refusal(model, profiles=profiles) is None) == fits
