"""What a step could not do with its model is said while planning, all at once, with its line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.plan import Plan
from compressor.engine.plan.planner import make_plan
from compressor.errors import ConfigError

AWQ = "{type: awq, name: int4, calibration: {data: words, num_samples: 2}, group_size: 32"
SIGNED = f"{AWQ}, format: compressed-tensors, symmetric: true}}"
EXPORT = "{type: export-onnx, name: onnx, parity: {data: words}"
PORTABLE = f"{EXPORT}, decoder: {{target: portable}}}}"
LONGROPE = (
    "rope_scaling: {rope_type: longrope, factor: 2.0, original_max_position_embeddings: 64, "
    f"short_factor: {[1.0] * 8}, long_factor: {[2.0] * 8}}}"
)
SMALL_CLASSIFIER = "family: image-classifier, preset: small"
PROFILES = (
    "{input_ids: {min: [1, 1], opt: [1, 8], max: [1, 16]}, "
    "attention_mask: {min: [1, 1], opt: [1, 8], max: [1, 32]}, "
    "'past_key_values.*': {min: [1, 2, 0, 16], opt: [1, 2, 8, 16], max: [1, 2, 16, 16]}}"
)


def write(folder: Path, model: str, *steps: str) -> Path:
    (folder / "words.txt").write_text("one two " * 80)
    tokenizer = Tokenizer(WordLevel({"one": 0, "two": 1}, unk_token="one"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    file = folder / "pipeline.yaml"
    file.write_text(
        f"version: 1\nname: checks\nmodel: {{family: transformers, {model}}}\n"
        "data:\n  words: {source: text, path: words.txt, tokenizer: tokenizer.json, "
        "sequence_length: 8}\n"
        "passes:\n" + "".join(f"  - {step}\n" for step in steps)
    )
    return file


def plan(file: Path) -> Plan:
    pipeline = load_pipeline(file, ())
    return make_plan(pipeline, Store(file.parent / "store"), SourceContext(pipeline.base))


def message(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(file)
    return str(caught.value)


def tiny(preset: str, fields: str = "") -> str:
    return f"preset: tiny-{preset}" + (f", config: {{{fields}}}" if fields else "")


def tensorrt(fields: str) -> str:
    return f"{{type: tensorrt, backend: rtx, targets: [sm86], profiles: {PROFILES}, {fields}}}"


@pytest.mark.parametrize(
    ("model", "steps", "line", "expected"),
    [
        # awq: the grids of the decoder's layers, of the vision tower and of the head
        (
            tiny("llama"),
            [AWQ.replace("32", "128") + "}"],
            7,
            ["layers.*.self_attn.q_proj: 64 inputs", "down_proj: 96 inputs", "32, 16, -1"],
        ),
        (
            tiny("mistral", "vocab_size: 510"),
            [AWQ + ", format: compressed-tensors, lm_head: {bits: 4, group_size: 48}}"],
            7,
            ["lm_head: 64 inputs are no multiple of the group size 48", "510 outputs of 4 bits"],
        ),
        # export-onnx: what the graph of a decoder computes
        (
            tiny("llama", "head_dim: 24"),
            [AWQ + "}", EXPORT + ", decoder: {context_length: 513}}"],
            8,
            ["513 is more than the 512", "multiple of 16", "24 wide"],
        ),
        (
            tiny("gemma3", "use_bidirectional_attention: true"),
            [PORTABLE],
            7,
            ["`decoder.target`: only for graphs that are built"],
        ),
        (tiny("llama", LONGROPE), [PORTABLE], 7, ["set `decoder.context_length: 64`"]),
        (tiny("llama"), [EXPORT + ", decoder: {accuracy_level: 4}}"], 7, ["no weights"]),
        # export-onnx after awq: integers that its operators cannot hold
        (
            tiny("llama"),
            [AWQ + ", format: compressed-tensors, bits: 3}", EXPORT + "}"],
            8,
            ["model.layers.*.self_attn: q_proj, k_proj, v_proj: 3 bits", "2 or 4 or 8 bits"],
        ),
        (
            tiny("llama"),
            [AWQ.replace("32", "8") + "}", EXPORT + "}"],
            8,
            ["model.layers.*.mlp: down_proj: groups of 8"],
        ),
        (
            tiny("llama"),
            [AWQ + ", format: compressed-tensors, effective_bits: 4.5}", EXPORT + "}"],
            8,
            ["q_proj, k_proj, v_proj: 3 bits", "set `candidate_bits: [2, 4, 8]`"],
        ),
        # tensorrt: integers, operators and profiles of the graph
        (tiny("llama"), [EXPORT + "}", tensorrt("precision: fp32")], 8, ["ONNX Runtime's own"]),
        (
            tiny("llama"),
            [AWQ + "}", PORTABLE, tensorrt("precision: int4, floats: fp32")],
            9,
            ["unsigned integers", "`symmetric: true`"],
        ),
        (
            tiny("llama"),
            [SIGNED, PORTABLE, tensorrt("precision: fp32")],
            9,
            ["the graph holds integers; set `precision: int4`"],
        ),
        (
            tiny("llama"),
            [PORTABLE, "{type: tensorrt, backend: rtx, targets: [sm86], precision: fp32}"],
            8,
            ["input input_ids [batch, tokens]: it is dynamic", "past_key_values.2.value"],
        ),
        (
            tiny("llama"),
            [PORTABLE, tensorrt("precision: int8, floats: fp32")],
            8,
            ["the graph holds no INT8 integers", "`target: tensorrt`"],
        ),
        # qat of a checkpoint, which has no place for its grids
        (tiny("llama"), ["{type: qat, calibration: {data: words}}"], 7, ["qat needs"]),
    ],
)
def test_a_step_that_cannot_succeed_is_refused_with_every_offender(
    model: str, steps: list[str], line: int, expected: list[str], tmp_path: Path
) -> None:
    text = message(write(tmp_path, model, *steps))
    assert f"pipeline.yaml:{line}" in text
    for part in expected:
        assert part in text


@pytest.mark.parametrize(
    ("model", "steps"),
    [
        (tiny("llama", "head_dim: 24"), [PORTABLE]),
        (
            tiny("llama", "sliding_window: 8, rope_scaling: {type: dynamic, factor: 2.0}"),
            [PORTABLE],
        ),
        (tiny("llama", LONGROPE), [EXPORT + ", decoder: {context_length: 64}}"]),
        (tiny("llama"), [AWQ + "}", EXPORT + ", decoder: {accuracy_level: 4}}"]),
        (tiny("llama"), [SIGNED, PORTABLE, tensorrt("precision: int4, floats: fp32")]),
        (tiny("glm4v"), [AWQ + ", format: compressed-tensors, vision: {group_size: -1}}"]),
        # layers that the group size does not divide get smaller groups
        (tiny("glm4v"), [AWQ + ", format: compressed-tensors, vision: {group_size: 128}}"]),
        (
            tiny("llama"),
            [
                "{type: prune, name: cut, target: {dimensions: {ffn: 80}}, importance: magnitude}",
                AWQ + ", format: compressed-tensors}",
            ],
        ),
        (
            tiny("llama"),
            [
                AWQ
                + ", format: compressed-tensors, effective_bits: 4.9, candidate_bits: [2, 4, 8]}",
                EXPORT + "}",
            ],
        ),
    ],
)
def test_steps_that_can_succeed_are_planned(model: str, steps: list[str], tmp_path: Path) -> None:
    assert len(plan(write(tmp_path, model, *steps)).steps) == len(steps) + 1


PRUNE = (
    "{type: prune, name: small, target: {%s}, axes: [ffn], importance: magnitude, repair: false}"
)


def test_sizes_after_a_cut_to_stated_dimensions_are_checked(tmp_path: Path) -> None:
    cut = "{type: prune, name: small, target: {dimensions: {ffn: 80}}, importance: magnitude}"
    head = ", format: compressed-tensors, lm_head: {bits: 4, group_size: 48}}"
    text = message(write(tmp_path, tiny("mistral"), cut, AWQ + head))
    assert "lm_head: 64 inputs are no multiple of the group size 48" in text


def test_sizes_that_depend_on_a_cut_are_not_judged(tmp_path: Path) -> None:
    cut = PRUNE % "params: 80%"
    steps = [
        cut,
        AWQ.replace("32", "64") + "}",
        PORTABLE,
        tensorrt("precision: int4, floats: fp32"),
    ]
    text = message(write(tmp_path, tiny("llama"), *steps))
    assert "inputs" not in text
    assert "unsigned integers" in text


def test_the_plan_of_a_checkpoint_loads_neither_torch_nor_onnx(tmp_path: Path) -> None:
    steps = [AWQ.replace("32", "128") + "}", EXPORT + "}", tensorrt("precision: fp32")]
    file = write(tmp_path, tiny("glm4v"), *steps)
    code = (
        "import sys\n"
        f"sys.argv = ['autoglm-compress', 'plan', {str(file)!r}]\n"
        "import cli\n"
        "try:\n"
        "    cli.main()\n"
        "except SystemExit as exit:\n"
        "    heavy = {'torch', 'onnx', 'onnx_ir', 'transformers'} & set(sys.modules)\n"
        "    print(exit.code, sorted(heavy))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2 []"
    assert "operators of ONNX Runtime's own" in " ".join(done.stderr.split())


def test_activations_that_no_runtime_computes_with_are_refused_before_training(
    tmp_path: Path,
) -> None:
    file = write(
        tmp_path,
        tiny("llama"),
        "{type: qat, calibration: {data: words}, target: tensorrt, activation_bits: 4}",
        EXPORT + "}",
    )
    text = file.read_text().replace("family: transformers, preset: tiny-llama", SMALL_CLASSIFIER)
    file.write_text(text)
    assert "no runtime computes with 4-bit activations" in message(file)


def test_a_graph_for_onnxruntime_is_refused_by_tensorrt_before_it_is_quantized(
    tmp_path: Path,
) -> None:
    file = write(
        tmp_path,
        tiny("llama"),
        "{type: qat, calibration: {data: words}}",
        EXPORT + "}",
        "{type: tensorrt, backend: rtx, targets: [sm86], precision: int8, floats: fp32}",
    )
    text = file.read_text().replace("family: transformers, preset: tiny-llama", SMALL_CLASSIFIER)
    file.write_text(text)
    assert "unsigned integers" in message(file)
    assert "image [batch" in message(file)
