"""Config of the ``delta`` pass."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compressor.config.record import StepName
from compressor.engine.contract import PassConfig
from compressor.runtimes.delta.manifest import parse_moment

ADAPTER = "adapter"
"""Format of low-rank adapters."""


class DeltaConfig(PassConfig):
    """Fields of a ``delta`` step."""

    encoding: Literal["auto", "int8", "float16", "exact"] = "auto"
    """`int8`: adapters, one scale for each rank vector. `float16`: adapters. `exact`: the same
    files, as zstd patches against those of the base. `auto`: the smallest within `max_error`."""
    max_error: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Largest relative error of an update (B·A of a LoRA layer; factors of (IA)³ minus 1). A larger
    one fails the step, or rules an encoding out for `auto`."""
    series: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "update"
    """Name of the series of updates that `counter` counts."""
    counter: Annotated[int, Field(ge=1, lt=1 << 53)] = 1
    """Version of the update. A device refuses a smaller one than it has applied."""
    expires: str | None = None
    """UTC, such as `2027-01-31T00:00:00Z`: later, the package is refused. Never by default."""
    base: StepName | None = None
    """Step whose model the package applies to. For an adapter, by default the base that its
    `base.json` names, in the same store. Any other model needs it, or `base_path`."""
    base_path: str | None = None
    """Artifact, folder or file in place of `base`, for a model that is in no step. A relative path
    starts at the folder in which the command runs."""
    base_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Digest of the model at `base_path`, which the id of the package covers. It is needed with
    `base_path`, and the error for a wrong one states the right one."""

    @model_validator(mode="after")
    def _check(self) -> DeltaConfig:
        if self.expires is not None:
            try:
                parse_moment(self.expires)
            except ValueError as error:
                raise ValueError(
                    f"`expires: {self.expires}` is no moment like 2027-01-31T00:00:00Z"
                ) from error
        if self.base is not None and self.base_path is not None:
            raise ValueError("`base` and `base_path` exclude each other")
        if self.base_digest is not None and self.base_path is None:
            raise ValueError("`base_digest` has no effect without `base_path`")
        return self
