"""Serve a model: check, bind, load, answer until a signal, drain."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from compressor import interrupts
from compressor.data.pictures import without_pillow_warnings
from compressor.errors import UsageError
from compressor.evaluation.energy_meters import find_meter
from compressor.generation.adapters import named_adapters
from compressor.generation.chat_model import ChatModel, ChatOptions, decoder_limits
from compressor.generation.generate import model_at
from compressor.runtimes.formats import StoredModel
from compressor.serving.app import Routes
from compressor.serving.bodies import BodyReader
from compressor.serving.guard import Guard
from compressor.serving.limits import ServerLimits
from compressor.serving.metrics import Metrics
from compressor.serving.power import FrequencyActuator, PowerBudget, PowerGovernor
from compressor.serving.predictor import Predictor
from compressor.serving.served_models import (
    ServedGenerator,
    ServedModel,
    ServedPredictor,
    add_energy,
)
from compressor.serving.server import Address, HttpServer
from compressor.serving.state import ServerState

_LAST_BYTES_SECONDS = 2.0
"""Time for the last events of answers that have ended to be sent."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The models that are served, the address, and the limits."""

    path: Path
    address: Address
    names: tuple[str, ...] = ()
    """Names of the model for clients; the artifact's folder if there is none."""
    api_keys: tuple[str, ...] = ()
    """Keys of which a client must send one; none for no check."""
    allow_no_key: bool = False
    """Listen on other addresses than loopback without a key."""
    threads: int = 1
    rows: int = 8
    """Answers that are generated at once."""
    context: int | None = None
    """Tokens of prompt and answer; None for the model's, as far as memory allows."""
    cache_bytes: int | None = None
    """Bytes for the keys and values of all answers; None for 60 % of the memory that is free."""
    max_waiting: int = 64
    """Requests that wait for a row."""
    fast_prompts: bool = False
    adapters: tuple[str, ...] = ()
    """LoRA adapters as ``[NAME=]PATH``; a request names one in place of the model."""
    max_batch: int = 16
    """Samples of a batch of predictions."""
    max_wait_seconds: float = 0.2
    """Time that a prediction may wait."""
    watts: float | None = None
    """Power budget."""
    limits: ServerLimits = field(default_factory=ServerLimits)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers."""

    names: tuple[str, ...]
    url: str
    rows: Sequence[tuple[str, str]]
    """Labelled facts for the console."""
    served: ServedModel
    state: ServerState
    metrics: Metrics
    http: HttpServer

    def drain(self, seconds: float) -> bool:
        """Refuse new requests and finish those that run; return False if that takes longer."""
        end = time.monotonic() + seconds
        self.state.is_draining = True
        _wait_until(lambda: not self.state.preparing, seconds)
        finished = self.served.drain(max(0.0, end - time.monotonic()))
        _wait_until(lambda: not self.state.in_flight, _LAST_BYTES_SECONDS)
        return finished


def serve_model(options: ServeOptions, on_start: Callable[[RunningServer], None]) -> None:
    """Serve a model until a signal arrives, then finish what runs.

    Args:
        options: what, where, and the bounds.
        on_start: called once requests are answered.

    Raises:
        CompressError: as ``running_server``.
        KeyboardInterrupt: a signal arrived, and not all answers ended in time.
    """
    with running_server(options) as server:
        on_start(server)
        try:
            server.http.wait()
        except KeyboardInterrupt:
            if not server.drain(options.limits.drain_seconds):
                raise
            interrupts.obeyed()


@contextmanager
def running_server(options: ServeOptions) -> Iterator[RunningServer]:
    """Serve a model within the block.

    The address is bound before the model is loaded; until it is, requests get status 503.

    Raises:
        UsageError: the address is open to others without a key, in use, or not this machine's; the
            model cannot be served, or memory does not suffice.
        CompressError: the model cannot be loaded.
    """
    check_exposure(options)
    model = model_at(options.path)
    generates = check_servable(model)
    adapters = _adapters(options, generates=generates)
    names = (*(options.names or (options.path.resolve().name,)), *adapters)
    # As many requests are prepared as may wait: what is beyond would be refused anyway. The queue
    # of predictions is bounded by time, and has no such number.
    most = options.rows + options.max_waiting if generates else options.limits.max_connections
    state = ServerState(names, options.limits, most)
    metrics = Metrics()
    routes = Routes(state, metrics)
    guard = Guard(routes.app(), state, metrics, options.api_keys)
    with ExitStack() as stack:
        stack.enter_context(without_pillow_warnings())
        listener = stack.enter_context(options.address.bind())
        http = stack.enter_context(HttpServer(guard, listener, options.limits))
        served = stack.enter_context(closing(_load(model, options, adapters, generates=generates)))
        power_rows = _add_power(stack, options, served, metrics)
        handlers = served.handlers(state, BodyReader(options.limits), metrics)
        routes.open(handlers, served.facts())
        state.is_loading = False
        rows = [*served.rows(), *power_rows, ("routes", ", ".join(handlers))]
        url = _url(options.address.host, http.port)
        yield RunningServer(names, url, rows, served, state, metrics, http)


def check_exposure(options: ServeOptions) -> None:
    """Check that a server which others can reach requires a key.

    Raises:
        UsageError: it does not.
    """
    host = options.address.host
    if options.api_keys or options.allow_no_key or host == "localhost":
        return
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise UsageError(
            f"on {host} everyone who reaches this machine could use the model",
            remedy="give a key with --api-key or AUTOGLM_COMPRESS_API_KEY, or state --no-key",
        )


def check_servable(model: StoredModel) -> bool:
    """Return True for a model that generates text, False for one that predicts.

    Raises:
        UsageError: the model is an encoder-decoder, which this server does not answer for.
    """
    try:
        model.format.prompt_limits(model.path)
    except UsageError:
        return False
    decoder_limits(model)
    return True


def _adapters(options: ServeOptions, *, generates: bool) -> dict[str, Path]:
    """Return the folders of the adapters by the names that requests give.

    Raises:
        UsageError: the model generates no text, a path holds no adapter, or a name is taken.
    """
    adapters = named_adapters(options.adapters)
    if adapters and not generates:
        raise UsageError(f"{options.path} generates no text: it takes no adapters")
    names = options.names or (options.path.resolve().name,)
    if taken := sorted(adapters.keys() & set(names)):
        raise UsageError(
            f"the model and an adapter have the name {taken[0]!r}",
            remedy="name the adapter: --adapter NAME=PATH",
        )
    return adapters


def _load(
    model: StoredModel, options: ServeOptions, adapters: Mapping[str, Path], *, generates: bool
) -> ServedModel:
    if not generates:
        predictor = Predictor(
            model,
            workers=options.threads,
            max_batch=options.max_batch,
            max_wait_seconds=options.max_wait_seconds,
        )
        return ServedPredictor(predictor, options.threads)
    chat_options = ChatOptions(
        threads=options.threads,
        rows=options.rows,
        context=options.context,
        cache_bytes=options.cache_bytes,
        max_waiting=options.max_waiting,
        fast_prompts=options.fast_prompts,
        adapters=adapters,
    )
    return ServedGenerator(ChatModel(model, chat_options))


def _add_power(
    stack: ExitStack, options: ServeOptions, served: ServedModel, metrics: Metrics
) -> list[tuple[str, str]]:
    """Measure energy, and hold the power budget if there is one; return rows for the console.

    Raises:
        UsageError: there is a budget, and no meter or nothing to turn down.
    """
    meter = find_meter()
    add_energy(metrics, meter, served)
    if options.watts is None:
        return [("energy", meter.name if meter else "not measured: this machine has no counter")]
    if meter is None:
        raise UsageError(
            "a power budget needs a meter, and this machine has none: no RAPL, NVML or battery "
            "that can be read",
            remedy="leave --watts out, or let root read /sys/class/powercap",
        )
    frequency = FrequencyActuator.find()
    actuators = [*served.actuators(), *([frequency] if frequency else [])]
    if not actuators:
        raise UsageError(
            "nothing can be turned down to hold a power budget: the files of cpufreq are not "
            "writable",
            remedy="leave --watts out, or run as a user who may write scaling_max_freq",
        )
    try:
        governor = PowerGovernor(meter, PowerBudget(options.watts), actuators)
    except OSError as error:
        raise UsageError(
            f"a power budget needs a meter, and {meter.name} cannot be read: {error}",
            remedy="leave --watts out, or start again once it can be read",
        ) from error
    metrics.gauge("power_level", "Share of the full speed", lambda: governor.level)
    metrics.gauge("power_watts", "Power of the last second", lambda: governor.watts)
    governor.start()
    stack.enter_context(closing(governor))
    return [("energy", f"{meter.name}, held below {options.watts:g} W")]


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
