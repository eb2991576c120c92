"""The chat of ``generate`` without a prompt: in a terminal, and with piped lines."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from compressor.commands.models import app
from compressor.errors import UsageError
from compressor.generation.generate import generate, model_at
from compressor.generation.prompt import Prompt
from compressor.generation.requests import SamplingOptions
from tests.support.decoders import save_decoder
from tests.support.processors import write_processor

WAIT_SECONDS = 120
PRESS_SECONDS = 0.3
SLOW = """
import fcntl, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C in this terminal signals this process
from compressor.generation import answer
pause, take = float(sys.argv[1]), answer.Answer.select_token
answer.Answer.select_token = lambda *arguments: time.sleep(pause) or take(*arguments)
sys.argv[:2] = ["autoglm-compress"]
import cli
cli.main()
"""
"""The program in a terminal of its own, with a pause before each token."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    save_decoder(folder, "tiny-llama")
    write_processor(folder)
    return folder


def piped(folder, lines, *options):
    command = [sys.executable, "-m", "cli", "generate", folder, "--threads", "1", *options]
    return subprocess.run(
        [*map(str, command)], input=lines, capture_output=True, check=False, timeout=WAIT_SECONDS
    )


def answer_of(folder, prompt):
    sampling = SamplingOptions(max_tokens=6)
    return generate(model_at(folder), prompt, sampling, threads=1, on_text=lambda _: None).text


def cached_tokens(text):
    return [int(count) for count in re.findall(r"(\d+)\s+of\s+them\s+cached", text)]


def test_piped_lines_are_answered_in_turn_with_the_turns_before(checkpoint):
    done = piped(
        checkpoint, b"w10 w11 w12\n\nw13\n/clear\nw10 w11 w12\n/exit\nw14\n", "--max-tokens", "6"
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.decode().splitlines()
    assert first == third == answer_of(checkpoint, Prompt("w10 w11 w12"))
    together = f"<user> w10 w11 w12 <end> <assistant> {first} <end> <user> w13 <end> <assistant>"
    assert second == answer_of(checkpoint, Prompt(together, raw=True))
    errors = done.stderr.decode()
    assert cached_tokens(errors)[1] == 6 + 5  # all of the first turn that the model has read
    assert errors.count("tokens/s") == 3


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (b"", (), "there is no prompt"),
        (b"\n \n", (), "there is no prompt"),
        (b"w\xff\n", (), "standard input is not UTF-8"),
        (b"w1 " * 600, (), "the prompt has 603 tokens; the context has 512"),
        (b"w1\n", ("--json",), "--json is for one text"),
        (b"w1\n", ("--raw",), "--raw is for one text"),
    ],
)
def test_input_that_cannot_be_answered_is_an_error(lines, options, message, checkpoint):
    done = CliRunner().invoke(app, ["generate", str(checkpoint), "--threads", "1", *options], lines)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
    assert not done.stdout


class Terminal:
    """The program in a pseudo-terminal."""

    def __init__(self, folder, *, pause=0.0, max_tokens=6):
        self._master, slave = pty.openpty()
        options = ["--threads", "1", "--max-tokens", str(max_tokens)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLOW, str(pause), "generate", str(folder), *options],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.output = ""

    def expect(self, pattern):
        """Read until the new output matches; return it up to there, and start anew behind it."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (match := re.search(pattern, self.output, re.DOTALL)) is None:
            assert time.monotonic() < deadline, self.output
            if select.select([self._master], [], [], 0.1)[0]:
                self.output += os.read(self._master, 4096).decode(errors="replace")
        seen, self.output = self.output[: match.end()], self.output[match.end() :]
        return seen

    def send(self, text):
        os.write(self._master, text.encode())

    def interrupt(self):
        """Press Ctrl-C, once the program reads the terminal.

        Python's `input` prints its prompt and then waits. A signal in between reaches it with the
        next key.
        """
        time.sleep(PRESS_SECONDS)
        self.send("\x03")

    def wait(self):
        """Return the exit code."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    os.read(self._master, 4096)
                except OSError:  # the other end is closed
                    return self.process.wait(WAIT_SECONDS)
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(WAIT_SECONDS)
        os.close(self._master)


@pytest.fixture
def terminal(checkpoint):
    opened = []

    def start(**options):
        opened.append(Terminal(checkpoint, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_a_terminal_holds_several_turns_until_the_end_of_input(terminal):
    chat = terminal()
    chat.expect("> ")
    chat.send("w10 w11 w12\n")
    chat.expect("tokens/s.*> ")
    chat.send("w13\n")
    assert cached_tokens(chat.expect("tokens/s.*> ")) == [11]
    chat.send("w1 " * 600 + "\n")
    chat.expect("error: the prompt has .*> ")
    chat.send("/clear\n")
    chat.expect("> ")
    chat.send("w13\n")
    assert "4 prompt tokens" in chat.expect("tokens/s.*> ")
    chat.send("\x04")
    assert chat.wait() == 0


def test_control_c_ends_the_answer_and_then_the_program(terminal):
    chat = terminal(pause=0.05, max_tokens=400)
    for _ in range(2):  # each answer has a Ctrl-C of its own
        chat.expect("> ")
        chat.send("w10 w11\n")
        chat.expect(r"w10 w11.*w\d+ w\d+ ")
        chat.interrupt()
        chat.expect("stopped by\\s+Ctrl-C")
    chat.expect("> ")
    chat.interrupt()
    assert chat.wait() == 130


DIVERTED = """
import os, signal, time
from compressor import interrupts
with interrupts.raised():
    for _ in range(2):
        with interrupts.diverted(lambda: print("cancelled", flush=True)):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # the same one, passed on by a parent
            time.sleep(0.3)
    with interrupts.diverted(lambda: print("cancelled", flush=True)):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
"""


def test_a_second_control_c_ends_a_program_whose_answer_does_not_end():
    command = [sys.executable, "-c", DIVERTED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 130 and "interrupted" in done.stderr
    assert done.stdout.split() == ["cancelled"] * 3
