"""Continuous batching: answers join and leave between the steps of one decoder.

One thread owns the decoder. It reads prompts in pieces and, between two pieces, steps all answers
that have read theirs, so that nobody waits for a long prompt (Yu et al. 2022, Orca; Agrawal et al.
2023, Sarathi).

Shapes: B answers, V vocabulary entries.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from compressor.errors import CompressError, PassError
from compressor.generation.answer import Answer, Ticket
from compressor.generation.engine_records import (
    ContextLengthError,
    EngineBusyError,
    EngineOptions,
    EngineStatistics,
)
from compressor.generation.requests import FinishReason, GenerationRequest, Listener
from compressor.generation.row_table import Prefix, RowTable
from compressor.generation.speculation import Speculation, StepTimes
from compressor.runtimes.rows import RowDecoder

Array = np.ndarray[Any, Any]
StartAnswer = Callable[[GenerationRequest, Listener], Answer]
"""Returns the answer to a request, with its selector and its text."""
_COMPARED = 8
"""Requests at the head of the queue among which the one with the least to read is next."""
_PATIENCE_SECONDS = 2.0
"""A request that waits longer is next, whatever it has to read."""
_SPARE_TOKENS = 64
"""Space for the begin of an answer, which a prompt needs to be read."""
_SMOOTHING = 0.2


class GenerationEngine:
    """Answers of one decoder, up to a number of rows at once.

    Attributes:
        context_length: tokens of prompt and answer together.
    """

    def __init__(self, decoder: RowDecoder, start: StartAnswer, options: EngineOptions) -> None:
        """Start the thread.

        Args:
            decoder: the rows; only the engine's thread uses it from now on.
            start: makes the answer to a request.
            options: bounds.
        """
        self._decoder, self._start, self._options = decoder, start, options
        self._table = RowTable(decoder, options.budget_tokens)
        self._waiting: deque[Answer] = deque()
        self._prefilling: list[Answer] = []
        self._decoding: list[Answer] = []
        self._guesses: dict[Answer, Speculation] = {}
        self._times = StepTimes()
        self._statistics = EngineStatistics(rows=decoder.options.rows)
        self.context_length = min(decoder.options.capacity, options.budget_tokens)
        self._answer_seconds = 1.0
        self._changed = threading.Condition()
        self._draining = self._closed = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, listener: Listener) -> Ticket:
        """Queue a request; its events are sent from the engine's thread.

        Raises:
            ContextLengthError: the prompt leaves no place for an answer. Longer answers are cut.
            EngineBusyError: too many requests wait, or the engine accepts nothing more.
            CompressError: the sampling options are impossible.
        """
        prompt_tokens = len(request.prompt.token_ids_T)
        if prompt_tokens >= self.context_length:
            raise ContextLengthError(prompt_tokens, self.context_length)
        with self._changed:
            self._check_queue(prompt_tokens)
        answer = self._start(request, listener)
        with self._changed:
            self._check_queue(prompt_tokens)
            self._waiting.append(answer)
            self._changed.notify_all()
        return Ticket(answer, self._wake)

    def statistics(self) -> EngineStatistics:
        """Return the counts so far."""
        with self._changed:
            return replace(
                self._statistics,
                running=len(self._prefilling) + len(self._decoding),
                waiting=len(self._waiting),
                held_tokens=self._table.held_tokens,
            )

    @property
    def is_idle(self) -> bool:
        """True if no answer runs or waits."""
        return not (self._waiting or self._prefilling or self._decoding)

    def drain(self, seconds: float) -> bool:
        """Accept nothing more, and wait until all answers have ended.

        Returns:
            False if some had not after this time.
        """
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: self.is_idle, timeout=seconds)

    def close(self) -> None:
        """End all answers and the thread."""
        with self._changed:
            self._draining = self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _check_queue(self, prompt_tokens: int) -> None:
        """Raise ``EngineBusyError`` if a prompt cannot wait."""
        options, waiting = self._options, self._waiting
        if self._draining:
            raise EngineBusyError("the server is shutting down", 1.0, closing=True)
        queued_tokens = sum(answer.tokens for answer in waiting) + prompt_tokens
        is_full = len(waiting) >= options.max_waiting
        if is_full or (waiting and queued_tokens > options.max_waiting_tokens):
            self._statistics.rejected += 1
            rows = self._decoder.options.rows
            seconds = self._answer_seconds * (len(waiting) / rows + 1) / 2
            raise EngineBusyError(f"{len(waiting)} requests are waiting already", seconds)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # From here on: the engine's thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or not self.is_idle)
                if self._closed:
                    break
            try:
                self._end_answers()
                self._read_piece()
                self._step()
            except Exception as error:  # noqa: BLE001  such as memory that a copy lacked
                self._fail([*self._decoding, *self._prefilling], error)
        for answer in [*self._decoding, *self._prefilling, *self._waiting]:
            self._end(answer, FinishReason.CANCELLED)

    def _end_answers(self) -> None:
        """End the answers that were cancelled, or whose time is over."""
        for answer in [*self._waiting, *self._prefilling, *self._decoding]:
            if answer.cancelled:
                self._end(answer, FinishReason.CANCELLED)
            elif answer.is_late:
                self._end(answer, FinishReason.TIME)

    def _read_piece(self) -> None:
        """Read one piece of the prompt with the fewest tokens left."""
        answer = self._next_to_read()
        if answer is None:
            return
        assert answer.row is not None  # noqa: S101
        row, images = answer.row, answer.request.prompt.images
        start, end = self._table.length(row), answer.tokens
        if images is None or self._decoder.splits_images:
            end = min(end, start + self._options.piece_tokens)
        if not self._make_space(answer, end - start):
            return
        with self._failing([answer]):
            logits_KV = self._decoder.append(
                answer.row, start, answer.token_ids[start:end], images, 1
            )
            self._table.append(answer.row, answer.prefix_keys[start:end])
            if end == answer.tokens:
                with self._changed:
                    self._prefilling.remove(answer)
                    self._decoding.append(answer)
                self._select_token(answer, logits_KV[-1])

    def _next_to_read(self) -> Answer | None:
        """Return the answer whose prompt is read next, with a row; None if none can be read."""
        begun = min(self._prefilling, key=self._unread, default=None)
        if not self._waiting or not self._table.free_rows:
            return begun
        prefixes = {answer: self._prefix(answer) for answer in self._candidates()}
        if not prefixes:
            return begun
        first = min(prefixes, key=lambda answer: answer.tokens - prefixes[answer].length)
        if begun is not None and self._unread(begun) <= first.tokens - prefixes[first].length:
            return begun
        self._admit(first, prefixes[first])
        return first

    def _candidates(self) -> list[Answer]:
        """Return the waiting answers of which one is next: those that the budget has space for.

        They are compared with all rows, which costs more than a step where prompts are long. While
        the budget is full nothing is compared; when it is not, a prompt is read after it.
        """
        with self._changed:
            oldest = [self._waiting[i] for i in range(min(_COMPARED, len(self._waiting)))]
        if time.monotonic() - oldest[0].waiting_since >= _PATIENCE_SECONDS:
            oldest = oldest[:1]
        if not self._prefilling and not self._decoding:
            return oldest
        promised = self._table.taken_tokens + sum(map(self._unread, self._prefilling))
        space = self._options.budget_tokens - promised - _SPARE_TOKENS
        return [answer for answer in oldest if answer.tokens <= space]

    def _unread(self, answer: Answer) -> int:
        assert answer.row is not None  # noqa: S101
        return answer.tokens - self._table.length(answer.row)

    def _prefix(self, answer: Answer) -> Prefix:
        """Return what rows hold of an answer's tokens."""
        if answer.request.prompt.images is not None and not self._decoder.splits_images:
            return Prefix(self._table.free_rows[0], 0)
        return self._table.longest_prefix(answer.prefix_keys)

    def _admit(self, answer: Answer, prefix: Prefix) -> None:
        """Give a waiting answer a row."""
        with self._changed:
            self._waiting.remove(answer)
            answer.row = self._table.take(prefix)
            self._prefilling.append(answer)
        self._decoder.use_adapter(answer.row, answer.request.prompt.adapter)
        answer.start(self._table.length(answer.row))

    def _step(self) -> None:
        """Append one token to each answer that has read its prompt, or several to a single one."""
        if not self._decoding:
            return
        while not self._table.make_space(len(self._decoding)):
            self._preempt_youngest()
        if len(self._decoding) == 1 and self._decoder.truncates:
            self._step_with_guesses(self._decoding[0])
        elif self._decoding:
            self._step_together()

    def _step_together(self) -> None:
        self._compact()
        answers = sorted(self._decoding, key=lambda answer: answer.row or 0)
        lengths_B = np.array([answer.tokens - 1 for answer in answers])
        ids_B = np.array([answer.token_ids[-1] for answer in answers])
        with self._failing(answers):
            images = [answer.request.prompt.images for answer in answers]
            logits_BV = self._decoder.step(lengths_B, ids_B, images)
            self._statistics.steps += 1
            self._statistics.stepped_rows += len(answers)
            for row, answer in enumerate(answers):
                self._table.append(row, answer.prefix_keys[-1:])
            for answer, logits_V in zip(answers, logits_BV, strict=True):
                with self._failing([answer], keep_rows=True):
                    self._select_token(answer, logits_V)

    def _step_with_guesses(self, answer: Answer) -> None:
        """Step one answer; tokens that were guessed from its text are checked in the same call."""
        assert answer.row is not None  # noqa: S101
        row, length = answer.row, answer.tokens - 1
        guesses = self._guess(answer)
        ids_T = np.array([answer.token_ids[-1], *guesses], np.int64)
        with self._failing([answer]):
            started = time.perf_counter()
            logits_KV = self._decoder.append(
                row, length, ids_T, answer.request.prompt.images, len(ids_T)
            )
            self._times.note(len(ids_T), time.perf_counter() - started)
            self._statistics.steps += 1
            self._statistics.stepped_rows += 1
            self._check_guesses(answer, guesses, logits_KV)

    def _check_guesses(self, answer: Answer, guesses: list[int], logits_KV: Array) -> None:
        """Take the tokens after each guess, up to the first that the guess missed."""
        assert answer.row is not None  # noqa: S101
        row, speculation = answer.row, self._guesses[answer]
        answer.proposed_tokens += len(guesses)
        self._statistics.proposed_tokens += len(guesses)
        accepted = 0
        for logits_V, guess in zip(logits_KV, [*guesses, None], strict=True):
            self._table.append(row, answer.prefix_keys[-1:])
            if self._select_token(answer, logits_V, guess) != guess:
                break
            accepted += 1
            if answer.reason is not None:
                break
        if guesses:
            speculation.note(len(guesses), accepted)

    def _guess(self, answer: Answer) -> list[int]:
        if answer not in self._guesses:
            self._guesses[answer] = Speculation(self._times, self._options.max_guesses)
        size = min(self._guesses[answer].size(), answer.left - 1)
        guesses = answer.guess(size) if size > 0 else []
        return guesses if self._table.make_space(1 + len(guesses)) else []

    def _select_token(self, answer: Answer, logits_V: Array, guess: int | None = None) -> int:
        token = answer.select_token(logits_V)
        self._statistics.generated_tokens += 1
        if token == guess:
            answer.accepted_tokens += 1
            self._statistics.accepted_tokens += 1
        if answer.reason is not None:
            self._end(answer, answer.reason)
        return token

    def _compact(self) -> None:
        """Move the answers that decode to the first rows."""
        count = len(self._decoding)
        beyond = [answer for answer in self._decoding if (answer.row or 0) >= count]
        taken = {answer.row for answer in self._decoding}
        for answer, row in zip(beyond, (r for r in range(count) if r not in taken), strict=True):
            assert answer.row is not None  # noqa: S101
            self._table.swap(answer.row, row)
            for other in self._prefilling:
                if other.row == row:
                    other.row = answer.row
            answer.row = row

    def _make_space(self, answer: Answer, tokens: int) -> bool:
        """Make space in the budget; return False if the answer had to give up its own row."""
        while not self._table.make_space(tokens):
            if self._preempt_youngest() is answer:
                return False
        return True

    def _preempt_youngest(self) -> Answer:
        """Take the row of the youngest answer away; its tokens are read again when there is space.

        Returns:
            The answer.
        """
        answer = max([*self._decoding, *self._prefilling], key=lambda other: other.arrived)
        self._statistics.preempted += 1
        assert answer.row is not None  # noqa: S101
        with self._changed:
            (self._prefilling if answer in self._prefilling else self._decoding).remove(answer)
            self._table.leave(answer.row)
            self._table.forget(answer.row)
            answer.row, answer.waiting_since = None, time.monotonic()
            self._waiting.appendleft(answer)
        return answer

    def _end(self, answer: Answer, reason: FinishReason) -> None:
        if seconds := answer.seconds:
            self._answer_seconds += _SMOOTHING * (seconds - self._answer_seconds)
        self._leave(answer)
        answer.finish(reason)

    def _leave(self, answer: Answer) -> None:
        """Free an answer's row, which keeps its tokens."""
        self._guesses.pop(answer, None)
        with self._changed:
            for answers in (self._waiting, self._prefilling, self._decoding):
                if answer in answers:
                    answers.remove(answer)
            if answer.row is not None:
                self._table.leave(answer.row)
            answer.row = None
            self._changed.notify_all()

    @contextmanager
    def _failing(self, answers: list[Answer], *, keep_rows: bool = False) -> Any:
        """Turn an exception into the failure of answers, whose rows are emptied.

        Args:
            answers: the answers of the call.
            keep_rows: True if the exception leaves the content of the rows as it is.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001  the other answers go on
            self._fail(answers, error, keep_rows=keep_rows)

    def _fail(self, answers: list[Answer], error: Exception, *, keep_rows: bool = False) -> None:
        """Send an error to answers that have not ended, and empty their rows."""
        failure = error if isinstance(error, CompressError) else PassError(f"{error!r}")
        for answer in [answer for answer in answers if answer.reason is None]:
            row = answer.row
            self._leave(answer)
            if row is not None and not keep_rows:
                self._table.forget(row)
            self._statistics.failed += 1
            answer.reason = FinishReason.CANCELLED
            answer.fail(failure)
