"""The routes of a server."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from compressor.serving.api_errors import ApiError
from compressor.serving.event_stream import encode_json
from compressor.serving.metrics import Metrics
from compressor.serving.state import ServerState

Handler = Callable[[Request], Awaitable[Any]]
POST_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/predict")


class Routes:
    """Handlers of the routes; those of a model are set once it is loaded."""

    def __init__(self, state: ServerState, metrics: Metrics) -> None:
        self._state, self._metrics = state, metrics
        self._started = int(time.time())
        self._handlers: Mapping[str, Handler] = {}
        self._facts: Mapping[str, Any] = {}

    def open(self, handlers: Mapping[str, Handler], facts: Mapping[str, Any]) -> None:
        """Set the handlers of the loaded model, and its further fields in ``/v1/models``."""
        self._handlers, self._facts = handlers, facts

    def app(self) -> Router:
        """Return the application."""
        routes = [
            Route("/", self._index),
            Route("/health", self._health),
            Route("/metrics", self._show_metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            *(Route(path, _Post(self, path), methods=["POST"]) for path in POST_ROUTES),
        ]
        return Router(routes, redirect_slashes=False)

    async def handle(self, path: str, request: Request) -> Any:
        """Answer a request to a model.

        Raises:
            ApiError: 404; the model that is served has no such route.
        """
        handler = self._handlers.get(path)
        if handler is None:
            served = ", ".join(self._handlers)
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                f"{path} does not fit the model that is served here, which answers {served}",
                code="unsupported_route",
            )
        return await handler(request)

    async def _index(self, request: Request) -> Response:  # noqa: ARG002 - a handler's arguments
        return _json({"models": list(self._state.names), "routes": list(self._handlers)})

    async def _health(self, request: Request) -> Response:  # noqa: ARG002
        self._state.check_ready()
        return _json({"status": "ok"})

    async def _show_metrics(self, request: Request) -> Response:  # noqa: ARG002
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:  # noqa: ARG002
        return _json(
            {"object": "list", "data": [self._model_json(name) for name in self._state.names]}
        )

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._state.check_model(name)
        return _json(self._model_json(name))

    def _model_json(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "autoglm-compress",
            **self._facts,
        }


class _Post:
    """A route whose handler may return any ASGI application, such as a stream."""

    def __init__(self, routes: Routes, path: str) -> None:
        self._routes, self._path = routes, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: ASGIApp = await self._routes.handle(self._path, Request(scope, receive))
        await response(scope, receive, send)


def _json(value: Any) -> Response:
    return Response(encode_json(value), media_type="application/json")
