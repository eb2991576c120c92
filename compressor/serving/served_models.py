"""The two kinds of models that a server answers for: those that generate text, and the others."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from compressor.evaluation.energy_meters import Meter
from compressor.foreign_files.limits import MEBIBYTE
from compressor.generation.chat_model import ChatModel
from compressor.serving.app import Handler
from compressor.serving.bodies import BodyReader
from compressor.serving.chat import ChatCompletions
from compressor.serving.completions import Completions
from compressor.serving.embeddings import Embeddings, is_text_encoder
from compressor.serving.metrics import Metrics
from compressor.serving.power import Actuator, CountActuator
from compressor.serving.predict import Predict
from compressor.serving.predictor import Predictor
from compressor.serving.state import ServerState

Handlers = Mapping[str, Handler]
_POLL_SECONDS = 0.02


class ServedModel(ABC):
    """A loaded model, as the server uses it."""

    @abstractmethod
    def handlers(self, state: ServerState, bodies: BodyReader, metrics: Metrics) -> Handlers:
        """Return the handlers of its routes, and add its gauges to the metrics."""

    @abstractmethod
    def rows(self) -> list[tuple[str, str]]:
        """Return labelled facts for the console."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Return further fields of the model in ``/v1/models``."""

    @abstractmethod
    def outputs(self) -> int:
        """Return the number of tokens or predictions so far."""

    @abstractmethod
    def actuators(self) -> list[Actuator]:
        """Return what can be turned down to save power."""

    @abstractmethod
    def drain(self, seconds: float) -> bool:
        """Finish what runs; return False if that takes longer."""

    @abstractmethod
    def close(self) -> None:
        """Release the model."""


class ServedGenerator(ServedModel):
    """A model that generates text."""

    def __init__(self, model: ChatModel) -> None:
        self._model, self._engine = model, model.engine

    def handlers(self, state: ServerState, bodies: BodyReader, metrics: Metrics) -> Handlers:
        """See ``ServedModel.handlers``."""
        statistics = self._engine.statistics
        metrics.gauge("running", "Answers that have a row", lambda: statistics().running)
        metrics.gauge("waiting", "Requests that wait", lambda: statistics().waiting)
        metrics.gauge(
            "held_tokens", "Tokens whose keys and values are kept", lambda: statistics().held_tokens
        )
        metrics.gauge(
            "preempted",
            "Answers that gave up their row, and were continued later",
            lambda: statistics().preempted,
        )
        metrics.gauge("failed", "Answers that an error ended", lambda: statistics().failed)
        metrics.gauge(
            "mean_batch",
            "Mean number of answers in a step",
            lambda: statistics().stepped_rows / max(1, statistics().steps),
        )
        if (images := self._model.image_cache) is not None:
            metrics.gauge("images_cached", "Images whose embeddings were kept", lambda: images.hits)
            metrics.gauge(
                "images_embedded", "Images that the vision tower computed", lambda: images.misses
            )
        arguments = (self._model, state, bodies, metrics)
        return {
            "/v1/chat/completions": ChatCompletions(*arguments).handle,
            "/v1/completions": Completions(*arguments).handle,
        }

    def rows(self) -> list[tuple[str, str]]:
        """See ``ServedModel.rows``."""
        statistics = self._engine.statistics()
        images = "text and images" if self._model.takes_images else "text"
        return [
            ("takes", images),
            ("context", f"{self._model.context_length:,} tokens of prompt and answer"),
            (
                "at once",
                f"{statistics.rows} answers, {self._model.budget_tokens:,} tokens of keys and "
                f"values in {self._model.cache_bytes / MEBIBYTE:,.1f} MiB",
            ),
        ]

    def facts(self) -> Mapping[str, Any]:
        """See ``ServedModel.facts``."""
        return {"max_model_len": self._model.context_length}

    def outputs(self) -> int:
        """See ``ServedModel.outputs``."""
        return self._engine.statistics().generated_tokens

    def actuators(self) -> list[Actuator]:
        """See ``ServedModel.actuators``."""
        return []

    def drain(self, seconds: float) -> bool:
        """See ``ServedModel.drain``."""
        return self._engine.drain(seconds)

    def close(self) -> None:
        """See ``ServedModel.close``."""
        self._model.close()


class ServedPredictor(ServedModel):
    """A model without text generation."""

    def __init__(self, predictor: Predictor, workers: int) -> None:
        self._predictor, self._workers = predictor, workers

    def handlers(self, state: ServerState, bodies: BodyReader, metrics: Metrics) -> Handlers:
        """See ``ServedModel.handlers``."""
        arguments = (self._predictor, state, bodies, metrics)
        handlers: dict[str, Handler] = {"/v1/predict": Predict(*arguments).handle}
        if is_text_encoder(self._predictor):
            handlers["/v1/embeddings"] = Embeddings(*arguments).handle
        return handlers

    def rows(self) -> list[tuple[str, str]]:
        """See ``ServedModel.rows``."""
        predictor = self._predictor
        inputs = [f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in predictor.inputs]
        rows = [
            ("runtime", predictor.runtime),
            ("inputs", "; ".join(inputs).replace("'", "")),
            ("outputs", ", ".join(predictor.outputs)),
            (
                "at once",
                f"{self._workers} batches of up to {predictor.max_batch} samples; "
                f"a request waits at most {predictor.max_wait_seconds * 1000:.0f} ms",
            ),
        ]
        reason = predictor.stand_in_reason
        return [*rows, ("note", reason)] if reason else rows

    def facts(self) -> Mapping[str, Any]:
        """See ``ServedModel.facts``."""
        return {
            "inputs": {
                spec.name: {"dtype": spec.dtype, "shape": list(spec.shape)}
                for spec in self._predictor.inputs
            },
            "outputs": list(self._predictor.outputs),
        }

    def outputs(self) -> int:
        """See ``ServedModel.outputs``."""
        return self._predictor.queue.predictions

    def actuators(self) -> list[Actuator]:
        """See ``ServedModel.actuators``."""
        queue = self._predictor.queue
        return [CountActuator(self._workers, queue.limit)]

    def drain(self, seconds: float) -> bool:
        """See ``ServedModel.drain``."""
        end = time.monotonic() + seconds
        queue = self._predictor.queue
        while queue.waiting_samples or queue.running_samples:
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def close(self) -> None:
        """See ``ServedModel.close``."""
        self._predictor.close()


def add_energy(metrics: Metrics, meter: Meter | None, served: ServedModel) -> None:
    """Add the energy so far, and that of a token or prediction, if there is a counter."""
    if meter is None:
        return
    metrics.gauge(
        "energy_joules",
        f"Energy since the start, by {meter.name}; NaN: not measured, the counter cannot be read",
        meter.joules,
    )
    metrics.gauge(
        "joules_per_output",
        "Energy of a token or prediction, idle time included; NaN: not measured",
        lambda: meter.joules() / max(1, served.outputs()),
    )
