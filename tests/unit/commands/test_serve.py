"""The command serve, as a user starts and ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from compressor.errors import UsageError
from compressor.runtimes.decoding import GenerationLimits
from compressor.runtimes.formats import Format, StoredModel
from compressor.serving.launch import ServeOptions, check_servable, running_server
from compressor.serving.server import Address
from tests.support.cli import cli
from tests.support.served import LETTERS, serving, write_byte_llama

BODY = {
    "messages": [{"role": "user", "content": "Hi"}],
    "temperature": 0,
    "ignore_eos": True,
    "logit_bias": LETTERS,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "model"
    write_byte_llama(folder, context=4096)
    return folder


@contextmanager
def started(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `serve` on a free port; yield the process and its URL."""
    command = [sys.executable, "-m", "cli", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        url = None
        for line in process.stdout:
            if match := re.search(r"http://\S+(?=/v1)", line):
                url = match[0]
            if "Ctrl-C" in line:
                break
        assert url is not None, process.stderr.read()
        yield process, url
    finally:
        process.kill()
        process.communicate()


def test_sigterm_under_load_finishes_the_answers_and_ends_with_0(llama: Path) -> None:
    with started(llama, "--name", "a", "--name", "b", "--threads", 1) as (process, url):
        results: list[httpx.Response] = []

        def post(name: str) -> None:
            body = {**BODY, "model": name, "max_tokens": 150}
            results.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60))

        threads = [threading.Thread(target=post, args=(name,)) for name in "abab"]
        for thread in threads:
            thread.start()
        while "autoglm_running 0.0" in httpx.get(url + "/metrics").text:
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert [result.json()["usage"]["completion_tokens"] for result in results] == [150] * 4
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_sigterm_under_load_answers_the_predictions_at_work_and_refuses_new_ones(
    onnx_folder: Callable[[str | None], Path],
) -> None:
    values = np.arange(90_000, dtype=np.float32).reshape(-1, 3)
    body = json.dumps({"inputs": {"x": values.tolist()}})  # decoded in a thread
    expected = (values @ np.arange(6).reshape(3, 2)).tolist()
    headers = {"content-type": "application/json"}
    ended = threading.Event()
    bounds = ("--batch", 4096, "--max-wait-ms", 3_600_000)  # nothing waits too long
    with started(onnx_folder(None), "--threads", 1, *bounds) as (process, url):
        times: list[tuple[float, httpx.Response | None]] = []

        def post() -> None:
            while not ended.is_set():
                begun = time.monotonic()
                try:
                    answer = httpx.post(
                        f"{url}/v1/predict", content=body, headers=headers, timeout=60
                    )
                except httpx.TransportError:
                    times.append((begun, None))
                else:
                    times.append((begun, answer))

        threads = [threading.Thread(target=post) for _ in range(6)]
        for thread in threads:
            thread.start()
        while len(times) < 8:
            time.sleep(0.01)
        signalled = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        ended.set()
        for thread in threads:
            thread.join()
    # A request of the last moments may reach the server after the signal.
    before = [answer for begun, answer in times if begun < signalled - 0.05]
    assert {answer and answer.status_code for answer in before} <= {200, 503}
    for answer in before:
        if answer.status_code == 200:
            assert np.allclose(answer.json()["outputs"]["logits"], expected)
        else:
            assert answer.json()["error"]["code"] == "draining"
    after = [answer for begun, answer in times if begun > signalled]
    assert all(answer is None or answer.status_code in {200, 503} for answer in after)
    assert sum(answer is not None and answer.status_code == 503 for answer in after) > 0


def test_what_does_not_end_in_time_is_cut_and_the_code_is_that_of_an_interrupt(
    llama: Path,
) -> None:
    with started(llama, "--drain-seconds", 0.2, "--threads", 1) as (process, url):
        body = {**BODY, "max_tokens": 4000, "temperature": 1.5, "n": 4, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            for _ in range(6):
                next(lines)
            process.send_signal(signal.SIGINT)
            assert "the server is stopping" in "".join(lines)
        assert process.wait(30) == 130


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"address": Address("0.0.0.0", 0)}, "give a key with --api-key"),
        ({"address": Address("192.0.2.1", 0), "allow_no_key": True}, "cannot listen on 192.0.2.1"),
        ({"context": 99_999_999}, "a context of 99999999 tokens is impossible"),
        ({"path": Path("nothing")}, "nothing is not a folder"),
    ],
)
def test_what_cannot_be_served_is_one_clear_error(
    llama: Path, options: dict[str, Any], text: str
) -> None:
    chosen = {"path": llama, "address": Address("127.0.0.1", 0), **options}
    with pytest.raises(UsageError, match=text), running_server(ServeOptions(**chosen)):
        pass


def test_a_power_budget_needs_a_meter(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.serving.launch.find_meter", lambda: None)
    match = "a power budget needs a meter"
    with pytest.raises(UsageError, match=match), serving(llama, watts=10.0):
        pass


def test_an_encoder_decoder_is_sent_to_generate(tmp_path: Path) -> None:
    limits = GenerationLimits(10, False, encoder_inputs=("input_features",))

    class Speech(Format):
        name, summary = "speech", "speech"

        def recognizes(self, path: Path) -> bool:
            return True

        def generation_limits(self, path: Path) -> GenerationLimits:
            return limits

    with pytest.raises(UsageError, match="autoglm-compress generate"):
        check_servable(StoredModel(Speech(), tmp_path))


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port} is in use"):
            Address("127.0.0.1", port).bind()


def test_the_command_for_vllm_is_printed(llama: Path) -> None:
    result = cli("serve", llama, "--print-vllm", "--name", "phone", "--context", "1000")
    assert result.returncode == 0
    assert result.stdout == (
        f"vllm serve {llama} --host 127.0.0.1 --port 8000 --served-model-name phone "
        "--max-model-len 1000\n"
    )
