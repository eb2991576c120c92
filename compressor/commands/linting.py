"""The command `lint`: what a runtime rejects in a graph, a packed checkpoint or an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.commands.common import print_json
from compressor.commands.options import AsJson
from compressor.errors import CompressError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

PANEL = "Analysis"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def lint(
    path: Annotated[
        Path,
        typer.Argument(
            help="ONNX file or artifact, packed checkpoint, or adapter (vllm).",
            metavar="PATH",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            help="ONNX: onnxruntime(-mobile), tensorrt. Else vllm or transformers.",
        ),
    ] = "onnxruntime",
    tp: Annotated[
        int | None,
        typer.Option(help="GPUs that share each layer (vllm).", min=1, max=64, show_default="1"),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="Compute capability, such as sm89, or cpu (vllm).", show_default="sm89"),
    ] = None,
    mm_encoder_tp_mode: Annotated[
        str | None,
        typer.Option(help="Option of vLLM: weights, or data for whole vision towers."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what a runtime rejects in a model.

    Of a graph, what it holds is shown first (float types, products, integers, control flow), and
    nodes that the runtime computes in float are listed as well. Of a checkpoint with 2
    to 8 bits, made by this tool or another, every layer is listed: whether it loads, in which
    kernel, why not, and the nearest grid that does. Of an adapter, what vLLM does not load or
    ignores, and the options that serve it. Exits with code 1 if anything is rejected.
    """
    from compressor.analysis.consumer_lint import CONSUMERS

    options = {"tp": tp, "gpu": gpu, "mm_encoder_tp_mode": mm_encoder_tp_mode}
    given = {name: value for name, value in options.items() if value is not None}
    if given and target != "vllm":
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{names}: for --target vllm alone", remedy=f"leave out {names}")
    if target in CONSUMERS:
        rejected = _lint_checkpoint(path, target, given, as_json=as_json)
    else:
        rejected = _lint_graph(path, target, as_json=as_json)
    if rejected:
        raise typer.Exit(CompressError.exit_code)


def _lint_graph(path: Path, target: str, *, as_json: bool) -> bool:
    from compressor.analysis.consumer_lint import CONSUMERS
    from compressor.graphs.contents import graph_contents
    from compressor.graphs.files import read_graph
    from compressor.graphs.lint.targets import lint as lint_graph
    from compressor.graphs.lint.targets import parse_target

    parsed = parse_target(target, CONSUMERS)
    graph = read_graph(_graph_path(path, target))
    contents = graph_contents(graph).rows()
    problems = [str(problem) for problem in lint_graph(graph, parsed)]
    if as_json:
        print_json({"target": target, "contents": dict(contents), "complaints": problems})
    else:
        from compressor.reports.console.terminal import print_line

        for label, text in contents:
            print_line(f"{label}: {text}")
        for line in problems or [f"no problems for {target}"]:
            print_line(line)
    return bool(problems)


def _graph_path(path: Path, target: str) -> Path:
    """Return the file or folder of a graph.

    Raises:
        UsageError: a model of another format is there.
    """
    from compressor.graphs.files import MODEL
    from compressor.runtimes.formats import recognizing_formats

    path = path / "model" if (path / "model").is_dir() else path
    if not path.exists() or path.suffix == ".onnx" or (path / MODEL).is_file():
        return path
    if formats := recognizing_formats(path):
        raise UsageError(
            f"{path} is of the format {formats[0].name!r}, and {target} is checked on ONNX graphs",
            remedy="name the artifact of `export-onnx`; packed checkpoints are checked with "
            "`--target vllm` or `--target transformers`",
        )
    return path


def _lint_checkpoint(path: Path, target: str, options: Mapping[str, Any], *, as_json: bool) -> bool:
    from compressor.analysis.consumer_lint import lint_checkpoint
    from compressor.models.consumers.targets import parse_server
    from compressor.reports.console.consumers import checked_as_json, render_checked

    checked = lint_checkpoint(path, target, parse_server(options))
    if as_json:
        print_json({"target": target, **checked_as_json(checked)})
    else:
        render_checked(checked)
    return not checked.loads
