"""Starts and stops the parts of a node: devices, model, engines, brokers, signals.

The order matters: READY goes out first. Everything slow (converting, loading) comes after it, and heartbeats report it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import uuid
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

from ..protocol import transport
from ..protocol.errors import EXIT_INTERRUPTED, ZmqrtError
from ..protocol.keys import PeerKeys
from ..protocol.metrics_server import ask_loop, serve_metrics
from ..protocol.timing import Backoff
from ..protocol.version import VERSION
from .agent import Agent
from .broker_link import BrokerLink
from .config import WorkerSettings
from .core import WorkerCore, WorkerState
from .device_discovery import find_devices, largest_memory
from .device_pool import DevicePool, GpuStats
from .engines.base import EngineSpec, Phase, dtype_on
from .gpu_monitor import GpuMonitor
from .joining import joined
from .memory_fit import ServingPlan
from .model_files import ModelError
from .model_resolver import Room, resolve_apart
from .model_sources import ModelFiles
from .requests import NodeConfig
from .startup_view import StartupView
from .supervisor import EngineSupervisor
from .tokenizer import Known, load_tokenizer
from .tokenizer_pool import TokenizerPool

log = logging.getLogger(__name__)


async def serve(settings: WorkerSettings, *, client_endpoint: str | None = None) -> int:
    """Run a node until it is told to leave; return its exit code."""
    settings, keys = joined(settings)
    for endpoint in settings.broker:
        transport.check_exposure(endpoint, has_keys=keys is not None, insecure=settings.insecure)
    context = transport.make_context()
    try:
        return await _Node(settings, context, keys, client_endpoint).run()
    finally:
        context.term()  # waits at most for the farewell of the links


class _Node:
    """The parts of one node and how they start."""

    def __init__(
        self,
        settings: WorkerSettings,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: PeerKeys | None,
        client_endpoint: str | None,
    ) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._devices = find_devices(settings)
        node_id = settings.name
        rng = random.Random()
        pool = DevicePool(
            [device.info() for device in self._devices],
            served=settings.service,
            batch_max_size=settings.batch_size(settings.engine_name),
            context=settings.max_model_len,
            fallbacks={device.id: device.fallback for device in self._devices},
        )
        brokers = [(endpoint, Backoff(rng)) for endpoint in settings.broker]
        self._core = WorkerCore(_config(settings, node_id, rng), pool, brokers, self._began_at)
        console = StartupView(
            self._core, node_id=node_id, is_json=settings.log_format == "json", client_endpoint=client_endpoint
        )
        self._agent = Agent(
            self._core,
            [BrokerLink(context, endpoint, keys=keys, wake=self._wake) for endpoint in settings.broker],
            on_pass=console.follow,
        )
        self._console = console

    async def run(self) -> int:
        """Serve; everything that was started is stopped at the end."""
        engines = asyncio.create_task(self._run_engines())
        watch = GpuMonitor(self._devices, self._learn)
        try:
            with self._signals(), serve_metrics(self._settings.metrics_port, self._collector) as url:
                self._console.metrics_url = url
                return await self._agent.run()
        finally:
            watch.close()
            self._console.close()
            engines.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await engines

    def _wake(self) -> None:
        self._agent.wake()

    def _collector(self) -> Collector:
        from .metrics import NodeCollector, describe_node  # prometheus-client is an extra

        name = self._settings.name
        return NodeCollector(ask_loop(self._loop, lambda: describe_node(self._core, name, self._loop.time())))

    def _learn(self, stats: Mapping[str, GpuStats]) -> None:
        """Take over what the monitor's thread has read; it may still come after the end."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._core.pool.learn, stats, self._loop.time())

    # --- engines -----------------------------------------------------------------------------------------------------

    async def _run_engines(self) -> None:
        """Find the model, then run the engine processes until the node leaves."""
        try:
            files = await self._find_model()
        except (ZmqrtError, ModelError, OSError, ValueError) as error:
            self._give_up(str(error))
            return
        except Exception as error:
            log.exception("the model could not be made ready")
            self._give_up(f"the model could not be made ready: {error!r}")
            return
        supervisor = EngineSupervisor(
            self._spec(files),
            self._devices,
            wake=self._wake,
            log_level=self._settings.log_level,
            log_format=self._settings.log_format,
            worker_id=self._settings.name,
        )
        async with supervisor:
            self._agent.attach(supervisor)
            await asyncio.Event().wait()  # until `run` cancels this task

    async def _find_model(self) -> ModelFiles | None:
        model = self._settings.model_to_load
        if model is None:
            return None
        files = await resolve_apart(
            model,
            self._on_progress,
            allow_hub=self._settings.allow_hub,
            allow_download=self._settings.allow_download,
            max_model_len=self._settings.max_model_len,
            engine=self._settings.engine if self._settings.is_our_engine else None,
            room=self._room(),
        )
        if self._engine_of(files) != "encoder":  # it reads texts by itself
            await self._load_tokenizer(files)
        return files

    async def _load_tokenizer(self, files: ModelFiles) -> None:
        self._agent.tokenizers = TokenizerPool(files.path)
        loaded = await self._agent.tokenizers.load()
        known = Known(frozenset(loaded.eos_ids), loaded.has_template)
        if loaded.has_template and not loaded.knows_tools:
            log.info("the chat template of this model knows no tools: requests with tools tell it of them in words")
        preprocessor = self._core.requests.preprocessor
        preprocessor.tokenizer = await asyncio.to_thread(load_tokenizer, files.path, known)
        preprocessor.has_tokenizer_pool = True

    def _engine_of(self, files: ModelFiles | None) -> str:
        return self._settings.engine_for(is_encoder=files is not None and files.kind != "generate")

    def _room(self) -> Room | None:
        """Describe the largest device; None if models need not fit, or its size is not known."""
        settings = self._settings
        memory = largest_memory(self._devices)
        if memory is None or not settings.is_our_engine or settings.engine_options.get("memory_check") == "0":
            return None
        dtype = dtype_on(memory.device, settings.dtype, settings.quantize)
        plan = ServingPlan(dtype=dtype, is_mapped=memory.device == "cpu", quantize=settings.quantize)
        return Room(plan, memory)

    def _on_progress(self, phase: Phase, percent: float) -> None:
        """All devices wait for the same files."""
        for device in self._devices:
            self._core.loading(device.id, phase, percent, self._loop.time() - self._began_at)
        self._wake()

    def _give_up(self, reason: str) -> None:
        """Say that there is nothing to serve: no device can do anything about it."""
        for device in self._devices:
            self._core.engine_exited(device.id, reason, is_restarted=False, now=self._loop.time())
        self._wake()

    def _spec(self, files: ModelFiles | None) -> EngineSpec:
        settings = self._settings
        engine = self._engine_of(files)
        return EngineSpec(
            engine=engine,
            model=settings.service,
            model_path=str(files.path) if files else settings.model or "",
            revision=files.revision if files else "",
            device="",  # each process is told its own
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            batch_max_size=settings.batch_size(engine),
            batch_max_latency_ms=settings.batch_max_latency_ms,
            slots=settings.engine_slots,
            options=settings.engine_options,
            quantize=settings.quantize,
        )

    # --- signals -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Generator[None, None, None]:
        """SIGTERM and the first Ctrl-C drain; the second signal stops at once."""
        handled = (signal.SIGTERM, signal.SIGINT)
        for number in handled:
            self._loop.add_signal_handler(number, self._on_signal, signal.Signals(number).name)
        try:
            yield
        finally:
            for number in handled:
                self._loop.remove_signal_handler(number)

    def _on_signal(self, name: str) -> None:
        if self._core.state in (WorkerState.DRAINING, WorkerState.GONE):
            log.warning("%s again: leaving without waiting for %d requests", name, len(self._core.requests.jobs))
            self._agent.stop(EXIT_INTERRUPTED)
        else:
            self._agent.drain(self._settings.drain_timeout_s, name)


def _config(settings: WorkerSettings, node_id: str, rng: random.Random) -> NodeConfig:
    return NodeConfig(
        worker_uuid=uuid.uuid4().bytes,
        node_id=node_id,
        capacity=settings.node_max_capacity,
        default_max_tokens=settings.default_max_tokens,
        stall_s=settings.stall_timeout_s,
        ext={
            "version": VERSION,
            "engine": settings.engine_name,
            "pid": os.getpid(),
            "proof": secrets.token_hex(16),  # so that nobody else can come back as this node
        },
        jitter=lambda: rng.uniform(0.9, 1.1),
    )
