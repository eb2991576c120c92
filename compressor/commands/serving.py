"""The command serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

PANEL = "Models"
_MEBIBYTE = 1 << 20
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def serve(
    model: Annotated[
        Path, typer.Argument(help="Artifact, or the directory of a model.", metavar="ARTIFACT")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for any free one.", min=0, max=65535)] = 8000,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Name of the model for clients; repeatable.", show_default="folder"),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key that clients must send; repeatable.", envvar="AUTOGLM_COMPRESS_API_KEY"
        ),
    ] = None,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="Let others use the model without a key.")
    ] = False,
    parallel: Annotated[int, typer.Option(help="Answers generated at once.", min=1, max=256)] = 8,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and answer.", min=16, show_default="the model's"),
    ] = None,
    cache_mb: Annotated[
        int | None,
        typer.Option(
            help="Memory for keys and values, in MiB.", min=1, show_default="60 % of what is free"
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Threads of the runtime.", min=1, show_default="all cores")
    ] = os.cpu_count() or 1,
    queue: Annotated[
        int, typer.Option(help="Requests that wait; more get status 429.", min=1)
    ] = 64,
    max_seconds: Annotated[
        float, typer.Option(help="Longest time of an answer, in seconds.", min=1.0)
    ] = 600.0,
    max_body_mb: Annotated[
        int, typer.Option(help="Largest request, in MiB.", min=1, max=1024)
    ] = 64,
    max_images: Annotated[int, typer.Option(help="Most images of a request.", min=1)] = 32,
    drain_seconds: Annotated[
        float, typer.Option(help="Time for answers to end after SIGTERM.", min=0.0)
    ] = 30.0,
    batch: Annotated[
        int, typer.Option(help="Most samples of a batch (models without text).", min=1)
    ] = 16,
    max_wait_ms: Annotated[
        float, typer.Option(help="Longest wait of a prediction, in milliseconds.", min=1.0)
    ] = 200.0,
    watts: Annotated[
        float | None, typer.Option(help="Power budget to hold, where there is a meter.", min=0.1)
    ] = None,
    fast_prompts: Annotated[
        bool,
        typer.Option("--fast-prompts", help="Read prompts with 8-bit weight copies (ONNX)."),
    ] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="LoRA adapter that requests name as the model; repeatable.",
            metavar="[NAME=]PATH",
        ),
    ] = None,
    print_vllm: Annotated[
        bool, typer.Option("--print-vllm", help="Print the command for vLLM, and serve nothing.")
    ] = False,
) -> None:
    """Serve a model over HTTP: an OpenAI API, or /v1/predict."""
    from compressor.serving.installed import require_server_libraries

    if print_vllm:
        _print_vllm(model, name or [], host, port, context)
        return
    require_server_libraries()
    from compressor.reports.console.serving import render_started
    from compressor.serving.launch import ServeOptions, serve_model
    from compressor.serving.limits import ServerLimits
    from compressor.serving.server import Address

    options = ServeOptions(
        model,
        Address(host, port),
        names=tuple(name or ()),
        api_keys=tuple(key for key in api_key or () if key),
        allow_no_key=no_key,
        threads=threads,
        rows=parallel,
        context=context,
        cache_bytes=None if cache_mb is None else cache_mb * _MEBIBYTE,
        max_waiting=queue,
        fast_prompts=fast_prompts,
        adapters=tuple(adapter or ()),
        max_batch=batch,
        max_wait_seconds=max_wait_ms / 1000,
        watts=watts,
        limits=ServerLimits(
            max_body_bytes=max_body_mb * _MEBIBYTE,
            max_images=max_images,
            max_seconds=max_seconds,
            drain_seconds=drain_seconds,
        ),
    )
    serve_model(options, render_started)


def _print_vllm(model: Path, names: list[str], host: str, port: int, context: int | None) -> None:
    from compressor.generation.generate import model_at
    from compressor.reports.console.terminal import print_line
    from compressor.serving.vllm_command import vllm_command

    names = names or [model.resolve().name]
    print_line(vllm_command(model_at(model), names, host, port, context))
