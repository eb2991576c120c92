"""The ``delta`` pass."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import Estimate, Pass, PassContext, PassOutput, PlanContext
from compressor.errors import MissingExtraError, RequirementError
from compressor.models.facts import ModelFacts
from compressor.runtimes.delta.manifest import parse_moment
from passes.delta.config import ADAPTER, DeltaConfig

_MEMORY_BYTES = 900_000_000


class Delta(Pass[DeltaConfig]):
    """Write the smallest package that turns a base into the model, for devices in the field.

    Of an adapter, the factors are rounded (`int8`, `float16`) and the loss is measured, or the
    files are kept as they are. Of two versions of a model, the files are stored as zstd patches.
    The package names its base, its result, a counter and an expiry; `sign` signs it, and `apply`
    checks all of them and ends in exactly the announced digest.
    """

    name = "delta"
    version = 1
    accepts = frozenset(
        {"adapter", "gguf", "mnn", "onnx", "ort", "packed", "quantized", "timm", "torch"}
    )
    produces = "delta"
    Config = DeltaConfig
    tools: ClassVar[tuple[str, ...]] = ("numpy", "zstandard")

    def estimate(self, config: DeltaConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """Estimate the disk that the encodings and the test of the package take.

        Raises:
            MissingExtraError: `zstandard` is not installed.
            RequirementError: nothing is at `base_path`, or another model than stated; or the
                model is no adapter, and no base is named or its weights would be rounded.
        """
        from passes.delta.sources import check_stated_base

        _check_fields(config, context.formats)
        if config.encoding in {"auto", "exact"} and find_spec("zstandard") is None:
            raise MissingExtraError("zstandard", "a patch between files", "provenance")
        check_stated_base(config, context.formats["parent"])
        size = parent.size_bytes
        disk = None if size is None else 4 * size
        return Estimate(ModelFacts(), None, _MEMORY_BYTES, disk)

    def requires(self, config: DeltaConfig, parent: Artifact, context: PassContext) -> None:
        """Check that the base is the right one, that the encoding fits, and that time is left.

        Raises:
            RequirementError: they do not fit, or `expires` is over.
            ModelError: the base is not found.
        """
        from compressor.runtimes.delta.slot import now
        from passes.delta.sources import find_package_base

        if config.expires is not None and parse_moment(config.expires) <= now():
            raise RequirementError(
                f"`expires: {config.expires}` is over: every device would refuse the package",
                remedy="set `expires` to a later moment",
            )
        find_package_base(config, parent, context)

    def run(
        self, config: DeltaConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Write the package and apply it for a test."""
        from passes.delta.run import write_delta
        from passes.delta.sources import find_package_base, open_new_model

        base = find_package_base(config, parent, context)
        source = open_new_model(parent, base, context.work)
        return write_delta(config, source, base, out, context)


def _check_fields(config: DeltaConfig, formats: Mapping[str, str]) -> None:
    """Raise RequirementError for fields that do not fit the formats of the model and its base."""
    model, base = formats["parent"], formats.get("base")
    if base is not None and base != model and model != ADAPTER:
        raise RequirementError(
            f"`base` is of the format {base!r}, and the new model of {model!r}",
            remedy="name two versions of a model in one format",
        )
    if model == ADAPTER and base != ADAPTER:
        return
    if config.base is None and config.base_path is None:
        raise RequirementError(
            "the model that the package applies to is not named",
            remedy="set `base` to an earlier step, such as `source`, or `base_path`",
        )
    if config.encoding in {"int8", "float16"}:
        raise RequirementError(
            f"`encoding: {config.encoding}` rounds the factors of an adapter; this is a patch",
            remedy="set `encoding: exact`, or leave it out",
        )
