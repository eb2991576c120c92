"""Adapters that requests name as their model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from compressor.errors import UsageError
from compressor.models.checkpoint.loading import load_module
from tests.support.served import LETTERS, serving, write_byte_llama
from tests.support.slots import export_with_slots, write_random_adapter


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_byte_llama(folder / "float")
    parent = SimpleNamespace(
        model=folder / "float", manifest=SimpleNamespace(id="ab12", format="torch")
    )
    export_with_slots(parent, folder / "onnx", "q_proj", "v_proj")
    modules = load_module(parent.model).named_modules()
    shapes = {n: tuple(m.weight.shape) for n, m in modules if n.endswith(("q_proj", "v_proj"))}
    write_random_adapter(parent.model, folder / "law", shapes)
    return folder


def test_a_request_names_the_model_or_an_adapter(bed: Path) -> None:
    fields = {"max_tokens": 12, "temperature": 0, "logit_bias": LETTERS}
    message = {"role": "user", "content": "Hi"}
    adapters = (f"law={bed / 'law'}",)
    with (
        serving(bed / "onnx", adapters=adapters) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        models = [entry["id"] for entry in client.get("/v1/models").json()["data"]]
        replies = {}
        for name in ("tiny", "law"):
            body = {"model": name, "messages": [message], **fields}
            replies[name] = client.post("/v1/chat/completions", json=body).json()
        text = {"prompt": "Hi", **fields}
        completed = client.post("/v1/completions", json={"model": "law", **text}).json()
        unknown = client.post("/v1/completions", json={"model": "mail", **text})
    assert models == ["tiny", "law"]
    assert [reply["model"] for reply in replies.values()] == ["tiny", "law"]
    answers = {reply["choices"][0]["message"]["content"] for reply in replies.values()}
    assert len(answers) == 2
    assert completed["model"] == "law"
    assert unknown.status_code == 404


def test_an_adapter_needs_a_name_of_its_own(bed: Path) -> None:
    with (
        pytest.raises(UsageError, match="the model and an adapter have the name 'tiny'"),
        serving(bed / "onnx", adapters=(f"tiny={bed / 'law'}",)),
    ):
        pass
