"""What a server is doing, and which model it serves under which names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from compressor.serving.api_errors import ApiError, overloaded, unavailable
from compressor.serving.limits import ServerLimits

_LOADING_SECONDS, _DRAINING_SECONDS = 5.0, 10.0
"""Seconds after which a client may try again."""


class ServerState:
    """Names and phase of one server; set by the main thread, read by the event loop."""

    def __init__(self, names: tuple[str, ...], limits: ServerLimits, max_preparing: int) -> None:
        """Describe a server that loads its model.

        Args:
            names: names of the model.
            limits: bounds of requests.
            max_preparing: the largest number of requests that are prepared at once.
        """
        self._max_preparing = max_preparing
        self.names, self.limits = names, limits
        self.is_loading, self.is_draining = True, False
        self.in_flight = 0
        """Requests whose answer is not complete."""
        self.preparing = 0
        """Requests that have arrived and are not yet in the queue."""

    def check_ready(self) -> None:
        """Check that requests are answered.

        Raises:
            ApiError: 503, while the server loads or drains.
        """
        if self.is_draining:
            raise unavailable("the server is stopping", _DRAINING_SECONDS, "draining")
        if self.is_loading:
            raise unavailable("the model is being loaded", _LOADING_SECONDS, "loading")

    @contextmanager
    def preparation(self) -> Iterator[None]:
        """Count a request as being prepared within the block.

        Raises:
            ApiError: 429; too many are.
        """
        if self.preparing >= self._max_preparing:
            raise overloaded("too many requests are being prepared", 1)
        self.preparing += 1
        try:
            yield
        finally:
            self.preparing -= 1

    def check_model(self, name: str | None) -> None:
        """Check that a request names the model that is served, or none.

        Raises:
            ApiError: 404, with the names that are served.
        """
        if name is not None and name not in self.names:
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                f"the model {name[:100]!r} is not served here: use "
                f"{' or '.join(map(repr, self.names))}, or start the server with --name NAME",
                code="model_not_found",
                param="model",
            )
