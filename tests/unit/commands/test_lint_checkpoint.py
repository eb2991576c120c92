"""`lint --target vllm` and `--target transformers` on packed checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.awq import COMPRESSED_TENSORS, NEAREST, run_awq, save_checkpoint
from tests.support.cli import cli
from tests.support.slots import write_random_adapter


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    parent = save_checkpoint(folder / "float")
    return run_awq(parent, folder / "awq", {**COMPRESSED_TENSORS, **NEAREST})[0]


def lint(path: Path, *options: object) -> tuple[int, dict[str, Any]]:
    done = cli("lint", path, "--json", *options)
    return done.returncode, json.loads(done.stdout)


def test_every_layer_is_listed_with_its_kernel(packed: Path) -> None:
    code, report = lint(packed, "--target", "vllm", "--gpu", "sm86")
    assert (code, report["loads"], report["complaints"]) == (0, True, [])
    assert {layer["kernel"] for layer in report["layers"]} == {"Marlin"}
    assert len(report["layers"]) == 3 * 7


def test_what_does_not_split_is_refused_with_the_nearest_grid(packed: Path) -> None:
    code, report = lint(packed, "--target", "vllm", "--tp", 4)
    assert code == 1
    refused = {layer["name"]: layer for layer in report["layers"] if layer["verdict"] != "loads"}
    assert "model.layers.0.mlp.down_proj" in refused  # 96 inputs: three groups of 32
    shown = cli("lint", packed, "--target", "vllm", "--tp", 4)
    assert shown.returncode == 1
    assert "model.layers.*.mlp.down_proj: 96 inputs over 4 GPUs are 0.75 groups" in shown.stdout


def test_zero_points_do_not_load_in_transformers(packed: Path) -> None:
    code, report = lint(packed, "--target", "transformers")
    assert code == 1
    assert all(layer["nearest"]["symmetric"] for layer in report["layers"])


def test_a_gptq_checkpoint_of_another_tool_is_read_from_its_headers(tmp_path: Path) -> None:
    tree = {
        "model_type": "llama",
        "num_attention_heads": 4,
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True},
    }
    (tmp_path / "config.json").write_text(json.dumps(tree))
    layer = "model.layers.0.self_attn.o_proj"
    save_file(
        {f"{layer}.qweight": torch.zeros(24, 192, dtype=torch.int32)},
        tmp_path / "model.safetensors",
    )
    code, report = lint(tmp_path, "--target", "vllm")
    assert code == 0
    assert [(item["outputs"], item["inputs"]) for item in report["layers"]] == [(192, 192)]
    assert lint(tmp_path, "--target", "vllm", "--tp", 2)[0] == 1  # 96 inputs: 1.5 groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "vllm", "--gpu", "sm77"), "expected one of cpu, sm75"),
        (("--target", "vllm", "--tp", "0"), "--tp"),
        (("--target", "vlm"), "did you mean 'vllm'"),
        (("--target", "transformers", "--tp", "2"), "for --target vllm alone"),
    ],
)
def test_wrong_options_are_refused(packed: Path, options: tuple[str, ...], message: str) -> None:
    done = cli("lint", packed, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_float_checkpoint_and_an_empty_folder_are_refused(packed: Path, tmp_path: Path) -> None:
    for folder, message in ((packed.parents[1] / "float", "floats"), (tmp_path, "config.json")):
        done = cli("lint", folder, "--target", "vllm")
        assert done.returncode == 2
        assert message in done.stderr


def test_an_adapter_is_listed_with_the_options_that_serve_it(packed: Path, tmp_path: Path) -> None:
    shapes = {"model.layers.0.self_attn.q_proj": (64, 64)}
    adapter = write_random_adapter(packed, tmp_path / "adapter", shapes)
    code, report = lint(adapter, "--target", "vllm")
    assert (code, report["complaints"]) == (0, [])
    assert report["notes"] == [
        f"vllm serve {packed} --enable-lora --max-lora-rank 8 --lora-modules NAME={adapter}"
    ]
    assert cli("lint", adapter, "--target", "transformers").returncode == 2


def test_what_vllm_ignores_or_refuses_in_an_adapter_is_a_problem(
    packed: Path, tmp_path: Path
) -> None:
    tower = {"visual.blocks.0.attn.qkv": (64, 64)}
    adapter = write_random_adapter(packed, tmp_path / "tower", tower)
    code, report = lint(adapter, "--target", "vllm")
    assert code == 1
    assert "vision tower" in report["complaints"][0]
    config = adapter / "adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "use_dora": True}))
    assert "use_dora" in lint(adapter, "--target", "vllm")[1]["complaints"][0]


def test_an_adapter_of_another_base_is_an_error(packed: Path, tmp_path: Path) -> None:
    shapes = {"model.layers.0.self_attn.q_proj": (64, 64)}
    adapter = write_random_adapter(packed, tmp_path / "adapter", shapes)
    base = json.loads((adapter / "base.json").read_text())
    (adapter / "base.json").write_text(json.dumps({**base, "digest": "0" * 64}))
    done = cli("lint", adapter, "--target", "vllm")
    assert done.returncode == 2
    assert "is not the base of the adapter" in done.stderr


def test_a_model_of_another_format_is_no_graph(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for folder, name in ((packed, "packed"), (tmp_path, "gguf")):
        done = cli("lint", folder)
        assert done.returncode == 2
        assert f"{folder} is of the format '{name}', and onnxruntime is checked on" in done.stderr
        assert "name the artifact of `export-onnx`" in done.stderr
