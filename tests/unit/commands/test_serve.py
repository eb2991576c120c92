"""The command serve, as a user starts and ends it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.cli import cli
from tests.support.served import LETTERS, write_byte_llama

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


def test_what_does_not_end_in_time_is_cut_and_the_code_is_that_of_an_interrupt(
    llama: Path,
) -> None:
    with started(llama, "--drain-seconds", 0.2, "--threads", 1) as (process, url):
        body = {**BODY, "max_tokens": 4000, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            for _ in range(6):
                next(lines)
            process.send_signal(signal.SIGINT)
            assert "the server is stopping" in "".join(lines)
        assert process.wait(30) == 130


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--host", "0.0.0.0"), "give a key with --api-key"),
        (("--host", "192.0.2.1", "--no-key"), "cannot listen on 192.0.2.1"),
        (("--context", "99999999"), "context"),
        (("--watts", "10"), "a power budget needs a meter"),
    ],
)
def test_what_cannot_be_served_is_one_clear_error(
    llama: Path, arguments: tuple[str, ...], text: str
) -> None:
    result = cli("serve", llama, "--port", "0", *arguments)
    assert result.returncode == 2
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_named(llama: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = cli("serve", llama, "--port", port)
    assert result.returncode == 2
    assert f"127.0.0.1:{port} is in use" in result.stderr


def test_a_path_that_holds_no_model_is_named(tmp_path: Path) -> None:
    result = cli("serve", tmp_path / "nothing", "--port", "0")
    assert result.returncode == 2
    assert "nothing is not a folder" in result.stderr


def test_the_command_for_vllm_is_printed(llama: Path) -> None:
    result = cli("serve", llama, "--print-vllm", "--name", "phone", "--context", "1000")
    assert result.returncode == 0
    assert result.stdout == (
        f"vllm serve {llama} --host 127.0.0.1 --port 8000 --served-model-name phone "
        "--max-model-len 1000\n"
    )
