"""Optimization profiles: the shapes that an engine is built for, for each dynamic input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Annotated

from pydantic import Field, model_validator

from compressor.config.record import Record
from compressor.models.capabilities.signature import InputSpec, describe_shape

Shape = tuple[Annotated[int, Field(ge=0)], ...]


class Profile(Record):
    """The shapes of one input, as in TensorRT's `IOptimizationProfile`."""

    min: Shape
    """Smallest shape."""
    opt: Shape
    """Shape that kernels are optimized for."""
    max: Shape
    """Largest shape."""

    @model_validator(mode="after")
    def _in_order(self) -> Profile:
        if len({len(self.min), len(self.opt), len(self.max)}) > 1:
            raise ValueError(
                f"min {describe_shape(self.min)}, opt {describe_shape(self.opt)} and max "
                f"{describe_shape(self.max)} have different numbers of dimensions"
            )
        for axis, (low, best, high) in enumerate(zip(self.min, self.opt, self.max, strict=True)):
            if not low <= best <= high:
                raise ValueError(
                    f"dimension {axis}: min {low}, opt {best} and max {high} are not in order"
                )
        return self


def expand_profiles(
    profiles: Mapping[str, Profile], inputs: Sequence[InputSpec]
) -> dict[str, Profile]:
    """Return profiles by input name, with patterns replaced by the names that they match.

    A pattern such as ``past_key_values.*`` applies to every matching input without a profile of its
    own. A pattern that applies to no input is kept as it is.
    """
    names = [spec.name for spec in inputs]
    expanded: dict[str, Profile] = {}
    for pattern, profile in profiles.items():
        matches = [
            name
            for name in names
            if fnmatchcase(name, pattern) and (name == pattern or name not in profiles)
        ]
        expanded |= dict.fromkeys(matches or [pattern], profile)
    return expanded


def missing_profiles(inputs: Sequence[InputSpec], profiles: Mapping[str, Profile]) -> list[str]:
    """Return one line for each dynamic input that has no profile."""
    return [
        f"input {spec.name} {describe_shape(spec.shape)}: it is dynamic, and has no profile"
        for spec in inputs
        if spec.name not in profiles and any(isinstance(size, str) for size in spec.shape)
    ]


def profile_problems(
    inputs: Sequence[InputSpec],
    profiles: Mapping[str, Profile],
    samples: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> list[str]:
    """Return one line for each way in which profiles do not fit the inputs or the samples.

    Args:
        inputs: inputs of the graph.
        profiles: profiles by input name.
        samples: shape of a batch of samples by input name; the first dimension, the batch, may be
            outside the profile.
    """
    by_name = {spec.name: spec for spec in inputs}
    problems = [
        f"profile {name}: the graph has no such input; its inputs are {', '.join(by_name)}"
        for name in profiles
        if name not in by_name
    ]
    for spec in inputs:
        profile = profiles.get(spec.name)
        if profile is None:
            continue
        details = list(_shape_problems(spec, profile))
        if not details and spec.name in samples:
            details = list(_sample_problems(samples[spec.name], profile))
        problems += [f"profile {spec.name}: {detail}" for detail in details]
    return problems + list(_contradictions(by_name, profiles))


def _shape_problems(spec: InputSpec, profile: Profile) -> Iterator[str]:
    if len(profile.min) != len(spec.shape):
        yield (
            f"min {describe_shape(profile.min)} has {len(profile.min)} dimensions, "
            f"the input {describe_shape(spec.shape)} has {len(spec.shape)}"
        )
        return
    for axis, size in enumerate(spec.shape):
        low, best, high = (shape[axis] for shape in (profile.min, profile.opt, profile.max))
        if isinstance(size, int) and {low, best, high} != {size}:
            yield f"dimension {axis} is fixed to {size}, but the profile has {low}, {best}, {high}"


def _sample_problems(shape: Sequence[int], profile: Profile) -> Iterator[str]:
    for axis, size in enumerate(shape):
        low, high = profile.min[axis], profile.max[axis]
        if axis and not low <= size <= high:
            yield f"dimension {axis} ranges from {low} to {high}, but is {size} in the samples"


def _contradictions(
    inputs: Mapping[str, InputSpec], profiles: Mapping[str, Profile]
) -> Iterator[str]:
    """Yield a line for each dimension name whose ranges in two inputs have no size in common.

    Dimensions of the same name have the same size when the engine runs.
    """
    ranges: dict[str, tuple[str, int, int]] = {}
    for name, profile in profiles.items():
        spec = inputs.get(name)
        if spec is None or len(profile.min) != len(spec.shape):
            continue
        for size, low, high in zip(spec.shape, profile.min, profile.max, strict=True):
            if not isinstance(size, str):
                continue
            first, first_low, first_high = ranges.setdefault(size, (name, low, high))
            if low > first_high or high < first_low:
                yield (
                    f"profile {name}: {size} ranges from {low} to {high}, "
                    f"but from {first_low} to {first_high} in {first}"
                )
