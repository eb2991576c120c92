"""Commands on models: generate, convert."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.commands.common import print_json
from compressor.commands.options import AsJson
from compressor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compressor.generation.requests import SamplingOptions

PANEL = "Models"
_GIVE_PROMPT = "give some text with --prompt"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def generate(
    model: Annotated[
        Path, typer.Argument(help="Artifact, or the directory of a checkpoint.", metavar="MODEL")
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Message to answer, or text to continue, translate or summarize.",
            show_default="a chat",
        ),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="Image in front of the message; repeatable.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="WAV file to transcribe or translate (speech models).")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Language that is spoken, or to translate to: en, deu_Latn.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task of a speech model: transcribe or translate.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Largest number of tokens to generate.", min=1)
    ] = 256,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0 is greedy.", min=0.0)
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Probability mass to sample from.", min=0.01, max=1.0)
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Random seed of the sampling.", min=0)] = 0,
    threads: Annotated[
        int, typer.Option(help="Threads of the runtime.", min=1, show_default="all cores")
    ] = os.cpu_count() or 1,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text without the chat template.")
    ] = False,
    fast_prompts: Annotated[
        bool,
        typer.Option("--fast-prompts", help="Read prompts with 8-bit weight copies (ONNX)."),
    ] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="LoRA adapter, for an ONNX graph with slots; repeatable in a chat.",
            metavar="[NAME=]PATH",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate text with a language model.

    The model may be a torch, packed or ONNX artifact, or a checkpoint. Speed is printed to stderr.
    Without --prompt this is a chat, with one message per line of the terminal or of standard input:
    Ctrl-C ends an answer, /clear starts anew, and /exit, Ctrl-D or a second Ctrl-C ends the chat;
    /adapter NAME changes to another adapter, and /adapter alone to none.
    """
    from compressor.generation.adapters import named_adapters
    from compressor.generation.generate import generate as generate_text
    from compressor.generation.generate import model_at
    from compressor.generation.prompt import Prompt
    from compressor.generation.requests import SamplingOptions
    from compressor.reports.console.models import render_generation
    from compressor.reports.console.terminal import print_chunk

    sampling = SamplingOptions(max_tokens, temperature, top_p, seed=seed)
    if prompt is None and not (image or audio or language or task):
        if raw or as_json:
            option = "--raw" if raw else "--json"
            raise UsageError(f"{option} is for one text: there is no prompt", remedy=_GIVE_PROMPT)
        _chat(
            model,
            sampling,
            threads=threads,
            fast_prompts=fast_prompts,
            adapters=named_adapters(adapter or ()),
        )
        return
    if adapter and len(adapter) > 1:
        raise UsageError("one text has one adapter", remedy="leave --prompt out for a chat")
    folder = next(iter(named_adapters(adapter or ()).values()), None)
    generated = generate_text(
        model_at(model),
        Prompt(prompt or "", tuple(image or ()), raw, audio, language, task, folder),
        sampling,
        threads=threads,
        fast_prompts=fast_prompts,
        on_text=(lambda _: None) if as_json else print_chunk,
    )
    if as_json:
        print_json(generated.as_json())
    else:
        render_generation(generated)


def _chat(
    path: Path,
    sampling: SamplingOptions,
    *,
    threads: int,
    fast_prompts: bool,
    adapters: Mapping[str, Path],
) -> None:
    from compressor.commands import chat
    from compressor.generation.conversation import Conversation, open_chat_model
    from compressor.generation.generate import model_at
    from compressor.reports.console.models import render_chat_start

    messages = chat.read_messages()
    model = open_chat_model(
        model_at(path), threads=threads, fast_prompts=fast_prompts, adapters=adapters
    )
    try:
        if chat.is_terminal():
            render_chat_start(model.context_length)
        chat.hold(Conversation(model, sampling), messages)
    finally:
        model.close()


@app.command("export-adapter", rich_help_panel=PANEL)
def export_adapter(
    adapter: Annotated[
        Path, typer.Argument(help="Artifact of a `lora` step, or its folder.", metavar="ADAPTER")
    ],
    model: Annotated[
        Path, typer.Argument(help="ONNX artifact with slots, or GGUF artifact.", metavar="MODEL")
    ],
    target: Annotated[
        Path, typer.Argument(help="File to write; it must not exist.", metavar="FILE")
    ],
    as_json: AsJson = False,
) -> None:
    """Write a LoRA adapter as a file of another runtime.

    For an ONNX graph it is an .onnx_adapter file, which onnxruntime-genai loads; for a GGUF file a
    GGUF adapter, which llama.cpp adds (`--lora`). The adapter's base is compared with the model
    when writing, and neither runtime does so later; `generate` and `serve` read the adapter itself.
    vLLM loads the adapter's folder as it is (`lint ADAPTER --target vllm`).
    """
    from compressor.generation.adapters import named_adapters
    from compressor.generation.generate import model_at
    from compressor.reports.console.terminal import print_line
    from compressor.runtimes.llamacpp.adapters import write_gguf_adapter
    from compressor.runtimes.llamacpp.format import MODEL_FILE

    if target.exists():
        raise UsageError(f"{target} exists already", remedy="name another file")
    [folder] = named_adapters([f"adapter={adapter}"]).values()
    exported = model_at(model).path
    if (exported / "model.onnx").is_file():
        from compressor.runtimes.onnxruntime.decoder.adapters import write_onnx_adapter

        size = write_onnx_adapter(exported, folder, target)
    elif (exported / MODEL_FILE).is_file():
        size = write_gguf_adapter(exported / MODEL_FILE, folder, target)
    else:
        raise UsageError(
            f"{model} holds neither an ONNX graph nor a GGUF file",
            remedy="name an `export-onnx` or `export-gguf` artifact",
        )
    if as_json:
        print_json({"file": str(target), "size_bytes": size})
    else:
        print_line(f"{target}: {size:,} bytes")


@app.command(rich_help_panel=PANEL)
def convert(
    folder: Annotated[
        Path, typer.Argument(help="Folder with config.json and pickled weights.", metavar="FOLDER")
    ],
    target: Annotated[
        Path, typer.Argument(help="Folder to write; it must not exist.", metavar="NEW_FOLDER")
    ],
    as_json: AsJson = False,
) -> None:
    """Write pickled weights as safetensors into a new folder.

    Only tensors are read: a pickle that holds anything else is refused, and no code in it is run.
    """
    from compressor.models.checkpoint.pickled import convert_pickled
    from compressor.reports.console.models import render_conversion, render_conversion_progress

    converted = convert_pickled(folder, target, render_conversion_progress)
    if as_json:
        print_json(
            {
                "folder": str(converted.folder),
                "tensors": converted.tensors,
                "size_bytes": converted.size_bytes,
                "notes": list(converted.notes),
            }
        )
    else:
        render_conversion(converted)
