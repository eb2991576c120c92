"""The GGUF format: ``model.gguf``, which llama.cpp executes, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import ModelError
from compressor.models.adapters.base import BASE_KEY
from compressor.models.checkpoint.companions import has_tokenizer, is_companion
from compressor.models.facts import ModelFacts
from compressor.runtimes.foreign.gguf import GgufFile, read_header
from compressor.runtimes.format_records import Cost, SampleShapes
from compressor.runtimes.formats import Format
from compressor.runtimes.llamacpp.library import PACKAGE

if TYPE_CHECKING:
    from compressor.runtimes.decoding import GenerationLimits
    from compressor.runtimes.rows import RowDecoder, RowOptions
    from compressor.runtimes.session import Session
    from compressor.runtimes.tensor_listing import ListedTensor

MODEL_FILE = "model.gguf"
PROJECTOR_FILE = "mmproj.gguf"
"""A vision tower beside a language model."""
_FILES = (MODEL_FILE, PROJECTOR_FILE)
_TEMPLATES = "additional_chat_templates"
_FILE = GgufFile()


class Gguf(Format):
    """A GGUF file in a folder of its own, with that of a vision tower where there is one."""

    name = "gguf"
    summary = "a GGUF file of llama.cpp: model.gguf in a folder of its own"
    runtime = "llama.cpp" if find_spec(PACKAGE) else None
    runtime_remedy = None if runtime else "pip install 'autoglm-compress[llamacpp]', and run again"
    default_remedy = "start from the checkpoint that it was exported from"

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder of model.gguf, mmproj.gguf, tokenizer files and licences."""
        if not (path / MODEL_FILE).is_file():
            return False
        names = {child.name for child in path.iterdir()}
        return all(name in _FILES or name == _TEMPLATES or is_companion(name) for name in names)

    def files(self, path: Path) -> Mapping[str, Path]:
        """Return the files, and those of tokenizer and licence beside them."""
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {file.relative_to(path).as_posix(): file for file in files}

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return names, types and shapes from the header."""
        listed = [_FILE.describe(path / name).tensors or () for name in _present(path)]
        return tuple(tensor for tensors in listed for tensor in tensors)

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return name, architecture and context length from the header."""
        return list(_FILE.describe(path / MODEL_FILE).details)

    def exported_from(self, path: Path) -> str | None:
        """Return the digest that the header states."""
        digest = read_header(path / MODEL_FILE)[1].get(BASE_KEY)
        return digest if isinstance(digest, str) else None

    def check(self, path: Path) -> None:
        """Check that the headers can be read."""
        for name in _present(path):
            _FILE.describe(path / name)

    def facts(self, path: Path) -> ModelFacts:
        """Return the size of what llama.cpp loads, and the number of weights in the headers."""
        parameters = sum(tensor.values for tensor in self.tensor_listing(path) or ())
        size = sum((path / name).stat().st_size for name in _present(path))
        return ModelFacts(parameters=parameters, size_bytes=size)

    def cost(self, path: Path, sample_shapes: SampleShapes) -> Cost:
        """Return the bytes that llama.cpp loads, and the number of weights."""
        del sample_shapes
        facts = self.facts(path)
        assert facts.size_bytes is not None  # noqa: S101 - see `facts`
        return Cost(facts.size_bytes, facts.parameters)

    def open_session(self, path: Path, *, threads: int, device: str = "cpu") -> Session:
        """Open the file in llama.cpp.

        Raises:
            MissingExtraError: the package with llama.cpp is not installed.
            RequirementError: its library cannot be used.
            ModelError: llama.cpp cannot load the file.
            UsageError: the device is no CPU.
        """
        from compressor.runtimes.llamacpp.session import LlamaCppSession

        if device != "cpu":
            raise self._unsupported(path, "it is executed on the CPU alone", "use --device cpu")
        self.check(path)
        return LlamaCppSession(path / MODEL_FILE, threads)

    def generation_limits(self, path: Path) -> GenerationLimits:
        """Return the context that the header states.

        Raises:
            ModelError: it states none.
        """
        from compressor.runtimes.decoding import GenerationLimits

        stated = dict(self.describe(path)).get("context length", "")
        if not stated.isdecimal():
            raise ModelError(
                f"the header of {path / MODEL_FILE} states no context length",
                remedy="copy or export it again",
            )
        return GenerationLimits(int(stated), takes_images=False)

    def prompt_limits(self, path: Path) -> GenerationLimits:
        """Return the context; prompts are encoded by the tokenizer files beside the GGUF file.

        Raises:
            UsageError: there are none.
            ModelError: the header states no context.
        """
        if not has_tokenizer(path):
            raise self._unsupported(
                path,
                "its tokenizer is llama.cpp's own, and no tokenizer.json lies beside it",
                f"run `llama-cli -m {path / MODEL_FILE}`, copy tokenizer.json and "
                "tokenizer_config.json of its checkpoint beside it, or run `export-gguf` again",
            )
        return self.generation_limits(path)

    def open_rows(self, path: Path, options: RowOptions) -> RowDecoder:
        """Open the file in llama.cpp, with a sequence for each row."""
        from compressor.runtimes.llamacpp.rows import LlamaCppRows

        return LlamaCppRows(path / MODEL_FILE, options)


def _present(path: Path) -> list[str]:
    """Return the names of the GGUF files in a folder, the language model's first."""
    return [MODEL_FILE, *(name for name in _FILES[1:] if (path / name).is_file())]
