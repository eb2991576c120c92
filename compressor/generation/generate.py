"""Text from an artifact, token by token, with the time that it took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts.kinds import Kind
from compressor.artifacts.store import MANIFEST
from compressor.engine.plan.source_model import DirectorySource
from compressor.engine.run.runner import load_given
from compressor.errors import DataError, UsageError
from compressor.models.families.transformers.processor import Processor
from compressor.runtimes.stepping import context_of, open_stepper

Array = np.ndarray[Any, Any]
_UNFINISHED = "\ufffd"
"""What a tokenizer says for half a character."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What was said, and how fast."""

    text: str
    prompt_tokens: int
    tokens: int
    finished: bool
    """Whether the model ended it, and not `--max-tokens`."""
    prefill_tokens_per_second: float
    """The prompt's, the first token of the answer with it."""
    decode_tokens_per_second: float | None
    """Of the tokens after the first; None where there are none."""
    runtime_threads: int

    def as_json(self) -> dict[str, Any]:
        """For a program to read."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next word is chosen."""

    max_tokens: int
    temperature: float
    """0: the best one."""
    top_p: float
    """From the words that together have this share (nucleus sampling, Holtzman et al. 2020)."""
    seed: int


def model_at(path: Path) -> tuple[Kind, Path]:
    """The kind and the folder of a model: of an artifact, every file verified, or of a directory as others wrote it.

    Raises:
        UsageError: there is nothing.
        ModelError: the directory holds no model.
        DamagedArtifactError: a file differs from the manifest.
    """
    if (path / MANIFEST).is_file():
        artifact = load_given(path)
        return artifact.manifest.kind, artifact.model
    if not path.is_dir():
        raise UsageError(
            f"{path} is no directory", remedy="name an artifact, or the directory of a model"
        )
    return DirectorySource(path).kind, path


def generate(
    kind: Kind,
    folder: Path,
    prompt: str,
    sampling: Sampling,
    *,
    threads: int,
    raw: bool,
    said: Callable[[str], None],
    images: Sequence[Path] = (),
    fast_prompts: bool = False,
) -> Generated:
    """Continue a prompt; ``said`` is given each piece of text as it comes.

    Args:
        kind: torch, awq or onnx.
        folder: the model's.
        prompt: what the user says; through the chat template where there is one and it is not ``raw``.
        sampling: how words are chosen.
        threads: of the runtime.
        raw: continue the prompt as it is.
        said: gets pieces of text.
        images: files that the prompt is about; they come before it.
        fast_prompts: read the prompt by weights in 8 bits, made of the packed ones of an onnx model.

    Raises:
        DataError: there is no tokenizer, or it gives no token for the prompt; an image cannot be read, or no processor is there.
        UsageError: the model does not generate, does not look at images, or has no packed weights to read prompts fast with;
            prompt and answer are longer than its context.
    """
    context_of(kind, folder)  # whether it generates at all comes before what it lacks
    shown: dict[str, Array] | None = None
    if images:
        tokenizer, ids, shown = _with_images(folder, prompt, images, raw)
    else:
        tokenizer = _tokenizer(folder)
        ids = _encoded(tokenizer, prompt, raw)
    ends = _ends(folder, tokenizer)
    room = len(ids) + sampling.max_tokens
    stepper = open_stepper(
        kind, folder, threads=threads, room=room, sees=shown is not None, fast_prompts=fast_prompts
    )
    draw = np.random.default_rng(sampling.seed)
    started = time.perf_counter()
    answer = [_chosen(stepper.feed(ids, shown), sampling, draw)]
    first = time.perf_counter()
    told = ""
    while answer[-1] not in ends:
        text = tokenizer.decode(answer, skip_special_tokens=True)
        if not text.endswith(_UNFINISHED):
            said(text[len(told) :])
            told = text
        if len(answer) == sampling.max_tokens:
            break
        answer.append(_chosen(stepper.feed(np.array(answer[-1:], dtype=np.int64)), sampling, draw))
    seconds = time.perf_counter() - first
    return Generated(
        told,
        len(ids),
        len(answer),
        answer[-1] in ends,
        len(ids) / (first - started),
        (len(answer) - 1) / seconds if len(answer) > 1 else None,
        threads,
    )


def _chosen(scores_V: Array, sampling: Sampling, draw: np.random.Generator) -> int:
    if sampling.temperature == 0:
        return int(scores_V.argmax())
    shares_V = scores_V.astype(np.float64) / sampling.temperature
    shares_V = np.exp(shares_V - shares_V.max())
    shares_V /= shares_V.sum()
    order_V = shares_V.argsort()[::-1]
    count = int(np.searchsorted(shares_V[order_V].cumsum(), sampling.top_p)) + 1
    some = order_V[:count]
    return int(draw.choice(some, p=shares_V[some] / shares_V[some].sum()))


def _tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"there is no tokenizer.json in {folder}",
            remedy="copy the checkpoint's tokenizer beside its weights",
        )
    from transformers import AutoTokenizer

    try:
        kinds: Any = AutoTokenizer
        return kinds.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises classes of several libraries
        raise DataError(f"{folder} holds no tokenizer that transformers opens: {error}") from error


def _encoded(tokenizer: Any, prompt: str, raw: bool) -> Array:
    if tokenizer.chat_template and not raw:
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
    else:
        ids = tokenizer(prompt)["input_ids"]
    if not len(ids):
        raise UsageError("the prompt is empty", remedy="say something with --prompt")
    return np.array(ids, dtype=np.int64)


def _with_images(
    folder: Path, prompt: str, images: Sequence[Path], raw: bool
) -> tuple[Any, Array, dict[str, Array]]:
    """The tokenizer, the tokens, and the processor's other arrays."""
    if raw:
        raise UsageError("images go through the chat template: leave --raw out")
    if missing := [str(image) for image in images if not image.is_file()]:
        raise DataError(f"there is no image {', '.join(missing)}")
    processor = Processor(folder)
    parts = [{"type": "image", "path": str(image.resolve())} for image in images]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
    try:
        found = processor.arrays(messages, ask=True)
    except Exception as error:  # of the template, the tokenizer, Pillow
        raise DataError(
            f"the processor of {folder} fails on {', '.join(map(str, images))}: {error}"
        ) from error
    return processor.processor.tokenizer, found.pop("input_ids"), found


def _ends(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: what generation_config.json says, and the tokenizer."""
    file = folder / "generation_config.json"
    told = json.loads(file.read_bytes()).get("eos_token_id") if file.is_file() else None
    some = told if isinstance(told, list) else [told]
    return frozenset(one for one in (*some, tokenizer.eos_token_id) if one is not None)
