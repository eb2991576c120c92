"""A server of a small vision-language model, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from compressor.serving.launch import RunningServer
from compressor.serving.limits import ServerLimits
from tests.support.served import export_byte_model, serving, write_byte_glm4v


@pytest.fixture(scope="session")
def glm4v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small GLM-4V checkpoint whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("glm4v") / "model"
    write_byte_glm4v(folder)
    return folder


@pytest.fixture(scope="session")
def glm4v_onnx(glm4v: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the checkpoint to ONNX."""
    out = tmp_path_factory.mktemp("glm4v-onnx") / "model"
    export_byte_model(glm4v, out)
    return out


@pytest.fixture(scope="session")
def chat_server(glm4v: Path) -> Iterator[RunningServer]:
    """Serve the checkpoint."""
    limits = ServerLimits(max_body_bytes=32 << 20, max_seconds=60)
    with serving(glm4v, limits=limits, max_waiting=16) as server:
        yield server


@pytest.fixture
def client(chat_server: RunningServer) -> Iterator[openai.OpenAI]:
    """Return OpenAI's client of the server; it does not try again."""
    with openai.OpenAI(base_url=f"{chat_server.url}/v1", api_key="EMPTY", max_retries=0) as client:
        yield client


@pytest.fixture
def http(chat_server: RunningServer) -> Iterator[httpx.Client]:
    """Return a plain client of the server."""
    with httpx.Client(base_url=chat_server.url, timeout=60) as client:
        yield client
