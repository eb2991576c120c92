"""The command line: one short function per command; the work is done elsewhere.

Exit codes: 0 ok · 1 a pass failed · 2 usage or config · 3 a gate failed · 4 a damaged artifact · 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from compressor.errors import (
    CompressError,
    DamagedArtifactError,
    GateError,
    Interrupted,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compressor.artifacts.runs import GateResult
    from compressor.artifacts.store import Artifact
    from compressor.data.contract import SourceContext
    from compressor.engine.plan.pipeline import Pipeline
    from compressor.engine.plan.plan import Plan

app = typer.Typer(
    name="autoglm-compress",
    help="Turn a multimodal checkpoint into the file that a phone or a server loads, with every step measured.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
passes_app = typer.Typer(help="List the passes, or explain one.", invoke_without_command=True)
app.add_typer(passes_app, name="passes")

File = Annotated[Path, typer.Argument(help="The pipeline file.", metavar="PIPELINE.YAML")]
Store = Annotated[Path, typer.Option("--output-dir", "-o", help="The store that artifacts are in.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value: passes[1].epochs=3.", metavar="KEY=VALUE"),
]
Seed = Annotated[int | None, typer.Option(help="Instead of the file's seed.", min=0)]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run the Python files that the pipeline names.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Borrow = Annotated[
    Path, typer.Option("--pipeline", "-p", help="Take `data:` and `evaluate:` from this file.")
]
ArtifactPath = Annotated[Path, typer.Argument(help="An artifact's directory.", metavar="ARTIFACT")]
PublicKey = Annotated[
    Path | None,
    typer.Option("--key", help="A public Ed25519 key, PEM; else from AUTOGLM_COMPRESS_PUBLIC_KEY."),
]
DEFAULT_STORE = Path("artifacts")


def main() -> NoReturn:
    """Run the program; every error that is the user's to read ends in one message and its own exit code."""
    from compressor.reports.console import output as console

    # Before libgomp reads it: threads that spin long while they wait starve each other on a machine that others use too.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

    def terminate(signum: int, frame: object) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        app()
    except CompressError as error:
        console.print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print_error(Interrupted("interrupted"))
        sys.exit(Interrupted.exit_code)
    except SystemExit as end:  # Typer's: of an interrupt inside a command too, without a word
        if end.code == Interrupted.exit_code:
            console.print_error(Interrupted("interrupted"))
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(0)


@app.command()
def run(
    file: File,
    output_dir: Store = DEFAULT_STORE,
    sets: Sets = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Begin at this step; those before must be there.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this step.")] = None,
    only: Annotated[str | None, typer.Option(help="Build only this step.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build the chosen steps again.")] = False,
    seed: Seed = None,
    device: Device = "cpu",
    allow_code: AllowCode = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, do nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run a pipeline: build what is missing, measure it, report, and check the gates."""
    made = _plan(_loaded(file, sets), output_dir, seed, device, allow_code)
    if dry_run:
        _show_plan(made, as_json)
    else:
        _carry_out(made, as_json=as_json, start=start, until=until, only=only, force=force)


@app.command()
def plan(
    file: File,
    output_dir: Store = DEFAULT_STORE,
    sets: Sets = None,
    seed: Seed = None,
    device: Device = "cpu",
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Show what a run would do: the steps, their ids, what is there, and what it will take."""
    _show_plan(_plan(_loaded(file, sets), output_dir, seed, device, allow_code), as_json)


@app.command()
def validate(
    files: Annotated[
        list[Path], typer.Argument(help="Pipeline files.", metavar="PIPELINE.YAML...")
    ],
    sets: Sets = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Check pipeline files, and that all they name is there; every problem at once."""
    from compressor.engine.plan.validation import check_files
    from compressor.reports.console import output as console

    plans = check_files(
        files, lambda file: _plan(_loaded(file, sets), DEFAULT_STORE, None, "cpu", allow_code)
    )
    if as_json:
        _print_json({str(file): [step.name for step in made.steps] for file, made in plans.items()})
    for file, made in {} if as_json else plans.items():
        console.say(f"{file} is right: {' → '.join(step.name for step in made.steps)}")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write pipeline.yaml.")] = Path(),
    starter: Annotated[str, typer.Option(help="phone or images.")] = "phone",
) -> None:
    """Write a pipeline.yaml to start from, with its JSON Schema for the editor."""
    from compressor.engine.plan.starter import write_starter
    from compressor.reports.console import output as console

    file = write_starter(folder, starter)
    console.say(f"wrote {file}; now: autoglm-compress run {file}")


@app.command(name="pass")
def run_pass(
    pass_type: Annotated[str, typer.Argument(help="The pass.", metavar="PASS")],
    artifact: ArtifactPath,
    pipeline: Annotated[
        Path | None, typer.Option("--pipeline", "-p", help="Take `data:` and `evaluate:` from it.")
    ] = None,
    output_dir: Store = DEFAULT_STORE,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A field of the pass: opset=20, or of `evaluate`.", metavar="KEY=VALUE"
        ),
    ] = None,
    seed: Seed = None,
    device: Device = "cpu",
    allow_code: AllowCode = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the plan and what the pass would decide; write nothing."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run one pass by hand on any artifact or model directory."""
    from compressor.engine.run.single_pass import single_pass

    made = _plan(
        single_pass(pass_type, artifact, pipeline, sets or ()), output_dir, seed, device, allow_code
    )
    if dry_run:
        _show_preview(made, as_json)
    else:
        _carry_out(made, as_json=as_json)


@passes_app.callback()
def passes(context: typer.Context, as_json: Json = False) -> None:
    """List the installed passes, data sources and model families."""
    if context.invoked_subcommand is None:
        list_passes(as_json)


@passes_app.command("list")
def list_passes(as_json: Json = False) -> None:
    """List the installed passes, data sources and model families."""
    from compressor.analysis.catalogue import catalogue
    from compressor.reports.console import output as console

    found = catalogue()
    if as_json:
        _print_json([entry.model_dump() for entry in found])
    else:
        console.render_catalogue(found)


@passes_app.command("explain")
def explain(
    name: Annotated[str, typer.Argument(help="A pass, data source or model family.")],
    as_json: Json = False,
) -> None:
    """Every field of one pass (or data source, or family): its type, its default, what it does."""
    from compressor.analysis.catalogue import entry
    from compressor.reports.console import output as console

    found = entry(name)
    if as_json:
        _print_json(found.model_dump())
    else:
        console.render_entry(found)


@app.command()
def show(
    target: Annotated[
        str, typer.Argument(help="An artifact, a store, or family:preset as autoglm-phone:9b.")
    ] = "artifacts",
    as_json: Json = False,
) -> None:
    """Show an artifact, what a store holds, or the size of a model that need not exist."""
    from compressor.analysis.model_sizes import model_sizes
    from compressor.artifacts.store import MANIFEST, open_artifact
    from compressor.artifacts.store import Store as ArtifactStore
    from compressor.reports.console import output as console

    path = Path(target)
    if (path / MANIFEST).is_file():
        artifact = open_artifact(path)
        if as_json:
            _print_json(artifact.manifest.model_dump(mode="json"))
        else:
            console.render_artifact(artifact)
    elif path.is_dir():
        found = [open_artifact(one) for one in ArtifactStore(path).artifacts()]
        if as_json:
            _print_json([one.manifest.model_dump(mode="json") for one in found])
        else:
            console.render_store(path, found)
    else:
        sizes = model_sizes(target)
        if as_json:
            _print_json(sizes.model_dump())
        else:
            console.render_sizes(sizes)


@app.command()
def compare(
    a: ArtifactPath,
    b: Annotated[Path, typer.Argument(help="Another artifact.", metavar="ARTIFACT")],
    pipeline: Annotated[
        Path | None,
        typer.Option("--pipeline", "-p", help="Compare layer by layer on samples of its `data:`."),
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Compare shapes and values of the weights.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="The set; by default that of `evaluate.accuracy`.")
    ] = None,
    samples: Annotated[int, typer.Option(help="How many samples.", min=1)] = 16,
    sets: Sets = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Compare two artifacts: metrics, sizes, all that differs in how they were made; their tensors, and layer by layer."""
    from compressor.analysis import compare as comparison
    from compressor.engine.run.runner import load_given
    from compressor.reports.console import comparisons as deep
    from compressor.reports.console import output as console

    both = (load_given(a), load_given(b))
    found = comparison.compare(*both)
    if tensors:
        found = found.model_copy(update={"tensors": comparison.tensors_of_both(*both)})
    if (loaded := _load(pipeline, sets)) is not None:
        layers = comparison.layers_of_both(
            *both, loaded, _sources(loaded, allow_code), data, samples
        )
        found = found.model_copy(update={"layers": layers})
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        console.render_compare(found)
        deep.render_second_looks(found)


@app.command()
def report(
    target: Annotated[
        Path, typer.Argument(help="A run's directory, or a store (its last run).", metavar="RUN")
    ] = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write a run's report again and show its ladder."""
    from compressor.reports.console import output as console
    from compressor.reports.pages.rerun import report_of_record

    folder, run_report = report_of_record(target)
    if as_json:
        _print_json(run_report.ladder.model_dump(mode="json"))
    else:
        console.render_run(run_report, folder)


@app.command()
def gate(
    target: Annotated[
        Path, typer.Argument(help="A run, a store (its last run), or an artifact.", metavar="RUN")
    ],
    against: Annotated[
        Path,
        typer.Option(
            help="A run, a store, an artifact, or a run's ladder.json.", metavar="BASELINE"
        ),
    ],
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--limit", help="top1:max_drop=0.01; without any, nothing may be shown to be worse."
        ),
    ] = None,
    pipeline: Annotated[
        Path | None,
        typer.Option(
            "--pipeline",
            "-p",
            help="Measure latency again as it says; without --limit, judge its gates.",
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML there.")] = None,
    sets: Sets = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Judge a run against a baseline; exit code 3 when a gate fails."""
    from compressor.engine.gates.check import gate_against
    from compressor.reports.console import output as console
    from compressor.reports.pages.gated import record_gates

    loaded = _load(pipeline, sets)
    with console.listener(quiet=as_json) as listener:
        gated = gate_against(
            target, against, limits or (), loaded, _sources(loaded, allow_code), listener
        )
    record_gates(gated, junit)
    if as_json:
        _print_json([one.model_dump(mode="json") for one in gated.gates])
    else:
        console.render_gates(gated.gates)
    _exit_by(gated.gates)


@app.command()
def history(
    output_dir: Store = DEFAULT_STORE,
    name: Annotated[
        str | None, typer.Option("--name", help="Only runs of the pipeline of this name.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Follow one metric over the runs.")] = None,
    as_json: Json = False,
) -> None:
    """List the runs of a store with their ladders, or follow one metric over them."""
    from compressor.analysis.history import history as history_of
    from compressor.reports.console import history as second_looks

    runs = history_of(output_dir, name)
    if as_json:
        _print_json([run.model_dump(mode="json") for run in runs])
    elif metric is not None:
        second_looks.render_followed(runs, metric)
    else:
        second_looks.render_history(runs)


@app.command()
def gain(
    target: Annotated[
        Path, typer.Argument(help="A run's directory, or a store (its last run).", metavar="RUN")
    ],
    pipeline: Borrow,
    seconds: Annotated[
        float, typer.Option(help="At most so many to time one pair of models in turns.", min=1)
    ] = 30,
    sets: Sets = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """What each step won in bytes, arithmetic and time, and where it is not faster, why."""
    from compressor.analysis.gain import gains
    from compressor.engine.plan.pipeline import BudgetConfig
    from compressor.reports.console import history as second_looks
    from compressor.reports.console import output as console
    from compressor.reports.pages.rerun import record_gains

    loaded = _loaded(pipeline, sets)
    with console.listener(quiet=as_json) as listener:
        found = gains(
            target, loaded, _sources(loaded, allow_code), BudgetConfig(seconds=seconds), listener
        )
    record_gains(target, found)
    if as_json:
        _print_json([one.model_dump(mode="json") for one in found])
    else:
        second_looks.render_gains(found)


@app.command()
def bisect(
    target: Annotated[
        Path, typer.Argument(help="A run's directory, or a store (its last run).", metavar="RUN")
    ],
    pipeline: Borrow,
    metric: Annotated[str, typer.Option(help="What was lost.")] = "top1",
    step: Annotated[
        str | None, typer.Option(help="The end of the chain; by default the last step.")
    ] = None,
    within: Annotated[str | None, typer.Option(help="Look for the layer in this step.")] = None,
    samples: Annotated[int, typer.Option(help="How many samples decide.", min=1)] = 256,
    each: Annotated[
        bool, typer.Option("--each", help="Put layers back one at a time, not by halves.")
    ] = False,
    sets: Sets = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Find the pass, and then the layer, that lost an accuracy."""
    from compressor.analysis.bisect import bisect as search
    from compressor.engine.run.events import StepProgress
    from compressor.reports.console import comparisons as deep
    from compressor.reports.console import output as console

    loaded = _loaded(pipeline, sets)
    with console.listener(quiet=as_json) as listener:
        found = search(
            target,
            metric,
            loaded,
            _sources(loaded, allow_code),
            step=step,
            within=within,
            samples=samples,
            each=each,
            progress=lambda what, done, total: listener(StepProgress("bisect", what, done, total)),
        )
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        deep.render_bisection(found)


@app.command(name="eval")
def evaluate(
    artifact: ArtifactPath,
    pipeline: Borrow,
    sets: Sets = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Measure any artifact as a pipeline's `evaluate:` says, without writing anything."""
    _measure(artifact, pipeline, sets, allow_code, as_json, accuracy=True)


@app.command()
def bench(
    artifact: ArtifactPath,
    pipeline: Borrow,
    sets: Sets = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Measure only the latency of an artifact, as `evaluate.latency` says."""
    _measure(artifact, pipeline, sets, allow_code, as_json, accuracy=False)


@app.command()
def generate(
    artifact: ArtifactPath,
    prompt: Annotated[
        str, typer.Option(help="What you say; through the chat template where there is one.")
    ],
    image: Annotated[
        list[Path] | None, typer.Option(help="What the prompt is about; for each image once.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Of the answer.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0: always the best word.", min=0.0)] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Choose among words that have this share.", min=0.01, max=1.0)
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the choice.", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="Of the runtime.", min=1)] = os.cpu_count() or 1,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    fast_prompts: Annotated[
        bool,
        typer.Option(
            "--fast-prompts",
            help="Of packed weights in ONNX: read the prompt by the same in 8 bits, which take memory of their own.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Talk to a language model: a torch, awq or onnx artifact, or a checkpoint's directory."""
    from compressor.generation.generate import Sampling, model_at
    from compressor.generation.generate import generate as generated
    from compressor.reports.console import output as console

    sampling = Sampling(max_tokens, temperature, top_p, seed)
    said = (lambda _: None) if as_json else console.stream
    found = generated(
        *model_at(artifact),
        prompt,
        sampling,
        threads=threads,
        raw=raw,
        said=said,
        images=image or (),
        fast_prompts=fast_prompts,
    )
    if as_json:
        _print_json(found.as_json())
    else:
        console.render_generated(found)


@app.command()
def verify(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Artifacts, stores, or runs.", metavar="PATH"),
    ] = None,
    signature: Annotated[
        bool, typer.Option("--signature", help="They must be signed, too.")
    ] = False,
    key: PublicKey = None,
    as_json: Json = False,
) -> None:
    """Check every file of artifacts against their manifests; exit code 4 when one is damaged."""
    from compressor.artifacts.signing import check_signature
    from compressor.artifacts.verifying import verify_all
    from compressor.reports.console import output as console

    also = partial(check_signature, key=key) if signature else lambda _: None
    found = verify_all(paths or [DEFAULT_STORE], also)
    if as_json:
        _print_json({str(path): problem for path, problem in found.items()})
    else:
        console.render_verify(found)
    damaged = [path for path, problem in found.items() if problem is not None]
    if damaged:
        raise typer.Exit(DamagedArtifactError.exit_code)


@app.command()
def sign(
    artifact: ArtifactPath,
    key: Annotated[
        Path | None,
        typer.Option(help="A private Ed25519 key, PEM; else from AUTOGLM_COMPRESS_PRIVATE_KEY."),
    ] = None,
) -> None:
    """Sign an artifact's manifest, and with it the hash of every file."""
    from compressor.artifacts import signing
    from compressor.engine.run.runner import load_given
    from compressor.reports.console import output as console

    console.say(f"wrote {signing.sign(load_given(artifact).path, key)}")


@app.command()
def export(
    artifact: ArtifactPath, archive: Annotated[Path, typer.Argument(help="out.tar.zst")]
) -> None:
    """Write an artifact, verified, as one .tar.zst file."""
    from compressor.artifacts.archive import export_artifact
    from compressor.artifacts.store import open_artifact
    from compressor.reports.console import output as console

    console.say(f"wrote {archive}, {export_artifact(open_artifact(artifact), archive)} bytes")


@app.command(name="import")
def import_(
    archive: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    output_dir: Store = DEFAULT_STORE,
    signature: Annotated[bool, typer.Option("--signature", help="It must be signed.")] = False,
    key: PublicKey = None,
) -> None:
    """Put an exported artifact into a store; what is not as its manifest says is refused, with exit code 4."""
    from compressor.artifacts.archive import import_artifact
    from compressor.artifacts.store import Store as ArtifactStore
    from compressor.reports.console import output as console

    artifact, new = import_artifact(archive, ArtifactStore(output_dir), key, signed=signature)
    console.say(f"{artifact.path}" + ("" if new else " was there already, verified"))


@app.command()
def sbom(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("sbom.cdx.json"),
) -> None:
    """Write a CycloneDX bill of all that is installed here."""
    from compressor.analysis.sbom import environment_sbom
    from compressor.artifacts.errors_from_os import writing
    from compressor.artifacts.files import write_atomic
    from compressor.reports.console import output as console

    told = environment_sbom()
    with writing(file):
        write_atomic(file, json.dumps(told, indent=1).encode())
    console.say(f"wrote {file}, {len(told['components'])} packages")


@app.command()
def gc(
    output_dir: Store = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what the last run of each pipeline does not need: old artifacts, left-overs, damaged ones."""
    from compressor.artifacts.runs import latest_runs
    from compressor.artifacts.store import Store as ArtifactStore
    from compressor.artifacts.store import size_on_disk
    from compressor.reports.console import output as console

    store = ArtifactStore(output_dir)
    keep = {step.id for record in latest_runs(output_dir).values() for step in record.steps}
    doomed = {path: size_on_disk(path) for path in store.garbage(keep)}
    if not dry_run:
        for path in doomed:
            store.remove(path)
    if as_json:
        _print_json(
            {"removed": not dry_run, "paths": {str(path): size for path, size in doomed.items()}}
        )
    else:
        console.render_garbage(doomed, dry_run=dry_run)


@app.command()
def lint(
    path: Annotated[
        Path, typer.Argument(help="An .onnx file, a folder with model.onnx, or an ONNX artifact.")
    ],
    target: Annotated[str, typer.Option(help="onnxruntime or tensorrt.")] = "onnxruntime",
    as_json: Json = False,
) -> None:
    """Name each node of a quantized ONNX graph that a consumer would refuse or leave in float; exit code 1 where there is one."""
    from compressor.graphs.files import read_graph
    from compressor.graphs.lint.onnxruntime import lint as complaints_of
    from compressor.graphs.lint.onnxruntime import target_of
    from compressor.reports.console import output as console

    complaints = complaints_of(
        read_graph(path / "model" if (path / "model").is_dir() else path), target_of(target)
    )
    if as_json:
        _print_json({"target": target, "complaints": complaints})
    for line in () if as_json else complaints or [f"nothing to complain of for {target}"]:
        console.say(line)
    if complaints:
        raise typer.Exit(CompressError.exit_code)


@app.command()
def doctor(output_dir: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """What this machine can do, and what is missing for which pass."""
    from compressor.analysis.doctor import diagnose
    from compressor.reports.console import output as console

    diagnosis = diagnose(output_dir)
    if as_json:
        _print_json(diagnosis.model_dump())
    else:
        console.render_doctor(diagnosis)
    if not diagnosis.ok:
        raise typer.Exit(CompressError.exit_code)


@app.command()
def schema() -> None:
    """Print the JSON Schema of pipeline.yaml, with every installed pass, for an editor."""
    from compressor.engine.plan.schema import pipeline_schema

    _print_json(pipeline_schema())


def _plan(
    pipeline: Pipeline, output_dir: Path, seed: int | None, device: str, allow_code: bool
) -> Plan:
    from compressor.artifacts.store import Store as ArtifactStore
    from compressor.engine.plan.planner import make_plan

    if device not in {"cpu", "cuda"}:
        raise UsageError(f"--device {device}: there is no such device", remedy="cpu or cuda")
    return make_plan(
        pipeline,
        ArtifactStore(output_dir),
        _sources(pipeline, allow_code),
        seed=seed,
        device=device,
    )


def _show_plan(made: Plan, as_json: bool) -> None:
    from compressor.analysis.catalogue import plan_as_json
    from compressor.reports.console import output as console

    if as_json:
        _print_json(plan_as_json(made))
    else:
        console.render_plan(made)


def _show_preview(made: Plan, as_json: bool) -> None:
    from compressor.analysis.catalogue import plan_as_json
    from compressor.engine.run.single_pass import preview
    from compressor.reports.console import output as console

    with console.listener(quiet=as_json) as listener:
        rows = preview(made, listener)
    if as_json:
        _print_json({**plan_as_json(made), "decisions": rows})
    else:
        console.render_plan(made)
        console.render_rows("what it would do", rows)


def _carry_out(
    made: Plan,
    *,
    as_json: bool,
    start: str | None = None,
    until: str | None = None,
    only: str | None = None,
    force: bool = False,
) -> None:
    from compressor.engine.run.runner import Runner, select
    from compressor.reports.console import output as console
    from compressor.reports.pages.rerun import record_run, run_as_json
    from compressor.reports.pages.write import write_artifact_reports

    selected = select(made, start=start, until=until, only=only)
    command = shlex.join(["autoglm-compress", *sys.argv[1:]])
    reporter = partial(write_artifact_reports, command=command)
    with console.listener(quiet=as_json) as listener:
        result = Runner(made, listener, reporter, selected=selected, force=force).run()
    folder, run_report = record_run(made, result, command)
    if as_json:
        _print_json(run_as_json(folder, run_report))
    else:
        console.render_run(run_report, folder)
    _exit_by(result.gates)


def _exit_by(gates: Sequence[GateResult]) -> None:
    failed = [one for one in gates if not one.passed]
    if failed:
        raise GateError("\n".join(f"{one.step}: {one.gate}: {one.reason}" for one in failed))


def _loaded(file: Path, sets: list[str] | None) -> Pipeline:
    from compressor.engine.plan.pipeline import load_pipeline

    return load_pipeline(file, sets or ())


def _load(file: Path | None, sets: list[str] | None) -> Pipeline | None:
    return _loaded(file, sets) if file is not None else None


def _sources(pipeline: Pipeline | None, allow_code: bool) -> SourceContext:
    from compressor.data.contract import SourceContext

    return SourceContext(pipeline.base if pipeline is not None else Path.cwd(), allow_code)


def _measure(
    path: Path,
    pipeline: Path,
    sets: list[str] | None,
    allow_code: bool,
    as_json: bool,
    *,
    accuracy: bool,
) -> None:
    from compressor.engine.run.runner import load_given
    from compressor.engine.run.single_pass import measure_artifact
    from compressor.reports.console import output as console

    artifact: Artifact = load_given(path)
    with console.listener(quiet=as_json) as listener:
        measurement = measure_artifact(
            artifact, pipeline, sets or (), listener, allow_code=allow_code, accuracy=accuracy
        )
    if as_json:
        _print_json(measurement.model_dump(mode="json"))
    else:
        console.render_metrics(artifact.name, measurement.metrics)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
