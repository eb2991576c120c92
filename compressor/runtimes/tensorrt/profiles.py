"""Optimization profiles: which sizes of a graph's inputs an engine is built for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from compressor.config.record import Record
from compressor.models.capabilities.signature import InputSpec

Shape = tuple[Annotated[int, Field(ge=0)], ...]


class Profile(Record):
    """The shapes of one input."""

    min: Shape
    """The smallest."""
    opt: Shape
    """The one that the engine is made fast for."""
    max: Shape
    """The largest."""


def expand_profiles(profiles: Mapping[str, Profile], inputs: Sequence[InputSpec]) -> dict[str, Profile]:
    """Profiles by the inputs' own names.

    One of a pattern, as ``past_key_values.*``, is that of every input which fits it and has none of its own; a pattern that fits
    nothing stays as it is.
    """
    names = [spec.name for spec in inputs]
    found: dict[str, Profile] = {}
    for pattern, profile in profiles.items():
        fitting = [
            name
            for name in names
            if fnmatchcase(name, pattern) and (name == pattern or name not in profiles)
        ]
        found |= dict.fromkeys(fitting or [pattern], profile)
    return found


def is_dynamic(spec: InputSpec) -> bool:
    """Whether a dimension of the input varies."""
    return any(isinstance(size, str) for size in spec.shape)


def profile_problems(
    inputs: Sequence[InputSpec],
    profiles: Mapping[str, Profile],
    samples: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> list[str]:
    """One line for each way in which profiles do not fit the inputs, or the samples; none where they do.

    Args:
        inputs: of the graph.
        profiles: by the input's name.
        samples: input to the shape of a batch of samples, where there are any; its first dimension, the batch, is not looked at.
    """
    by_name = {spec.name: spec for spec in inputs}
    found = [
        f"profile {name}: the graph has no such input; it has {', '.join(by_name)}"
        for name in profiles
        if name not in by_name
    ]
    for spec in inputs:
        profile = profiles.get(spec.name)
        if profile is None:
            if is_dynamic(spec):
                found.append(
                    f"input {spec.name} {_told(spec.shape)}: it varies, and has no profile"
                )
            continue
        complaints = list(_unfit(spec, profile))
        if not complaints and spec.name in samples:
            complaints = list(_beyond(samples[spec.name], profile))
        found += [f"profile {spec.name}: {complaint}" for complaint in complaints]
    return found + list(_unlike(by_name, profiles))


def _unfit(spec: InputSpec, profile: Profile) -> Iterator[str]:
    shapes = {"min": profile.min, "opt": profile.opt, "max": profile.max}
    wrong = {name: shape for name, shape in shapes.items() if len(shape) != len(spec.shape)}
    for name, shape in wrong.items():
        yield f"{name} {_told(shape)} has {len(shape)} dimensions, the input {_told(spec.shape)} has {len(spec.shape)}"
    if wrong:
        return
    for axis, size in enumerate(spec.shape):
        low, best, high = (shape[axis] for shape in shapes.values())
        if isinstance(size, int) and {low, best, high} != {size}:
            yield f"dimension {axis} is always {size}, and the profile has {low}, {best}, {high}"
        elif not low <= best <= high:
            yield f"dimension {axis}: min {low}, opt {best} and max {high} do not rise"


def _beyond(shape: Sequence[int], profile: Profile) -> Iterator[str]:
    for axis, size in enumerate(shape):
        if axis and not profile.min[axis] <= size <= profile.max[axis]:
            yield f"dimension {axis} is from {profile.min[axis]} to {profile.max[axis]}, and {size} in the samples"


def _unlike(inputs: Mapping[str, InputSpec], profiles: Mapping[str, Profile]) -> Iterator[str]:
    """Dimensions of one name have one size when the engine runs: their ranges need a size in common."""
    seen: dict[str, tuple[str, int, int]] = {}
    for name, profile in profiles.items():
        spec = inputs.get(name)
        if spec is None or {len(profile.min), len(profile.opt), len(profile.max)} != {
            len(spec.shape)
        }:
            continue
        for size, low, high in zip(spec.shape, profile.min, profile.max, strict=True):
            if not isinstance(size, str):
                continue
            first, lowest, highest = seen.setdefault(size, (name, low, high))
            if low > highest or high < lowest:
                yield f"profile {name}: {size} is from {low} to {high}, and from {lowest} to {highest} in {first}"


def _told(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
