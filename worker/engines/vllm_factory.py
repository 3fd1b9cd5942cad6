"""From a spec to a `VllmEngine`: environment and options of vLLM, the model loaded and tried once."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, Never

from .base import CannotLoadError, Capacity, EngineSpec, Progress, SamplingParams, TokenEvent, TokenRequest, dtype_on
from .vllm_engine import StepLog, VllmEngine
from .vllm_output import LoadOutput

_SWITCH: Final = {"1": True, "true": True, "0": False, "false": False}
_OURS: Final = ("model", "tokenizer", "skip_tokenizer_init", "served_model_name", "disable_log_stats")
"""Arguments of vLLM that are not for an operator to set: what they say is decided by the node."""
_WARM_PROMPT: Final = [0] * 8
_WARM_S: Final = 0.5
log = logging.getLogger(__name__)


def factory(spec: EngineSpec, progress: Progress) -> VllmEngine:
    """Load the model of `spec` into vLLM, and let it draw a few tokens: what it compiles at the first step is compiled.

    Raises:
        CannotLoadError: vLLM is not there, or will have neither the model nor the options.
        RuntimeError: its processes ended while they loaded; with the error that they named.
    """
    for name, value in environment(spec).items():
        os.environ.setdefault(name, value)
    progress("starting", 0.0)
    output = LoadOutput(progress)
    with output.captured():
        vllm = _imported()
        config = _config(spec)
        progress("loading", 0.0)
        try:
            engine = _make(spec, vllm, config)
        except Exception as error:
            raise RuntimeError(f"vLLM could not load {spec.model}: {output.error or error}") from error
        progress("warming", 0.0)
        _warm_up(engine, progress)
    log.info("vLLM %s serves %s as %s: %s", vllm.__version__, spec.model, engine.revision, engine.capacity())
    return engine


def environment(spec: EngineSpec) -> dict[str, str]:
    """Return what vLLM reads from the environment and an operator has not said otherwise."""
    common = {
        "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anybody
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a forked process would hold our descriptors open
    }
    if spec.device != "cpu":
        return common
    return common | {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; without it most of the machine's memory would be taken
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # each node would bind its threads to the same first cores
    }


def _imported() -> Any:  # noqa: ANN401 - vLLM is not typed here, as it is not installed everywhere
    try:
        vllm = importlib.import_module("vllm")
        importlib.import_module("vllm.v1.engine.async_llm")
    except ImportError as error:
        raise CannotLoadError(f"--engine vllm needs vLLM (pip install 'zmqrt[vllm]'): {error}") from error
    return vllm


# --- options ---------------------------------------------------------------------------------------------------------


def words_of(options: Mapping[str, str], kinds: Mapping[str, str]) -> list[str]:
    """Return options as vLLM's command line has them. `kinds` has the type of each argument as it is written there.

    Raises:
        CannotLoadError: an option is not vLLM's, or is the node's to decide.
    """
    words: list[str] = []
    for given, value in options.items():
        name = given.replace("-", "_")
        base = name.partition(".")[0]  # --compilation-config.mode
        if base in _OURS:
            raise CannotLoadError(f"--engine-opt {given}: the node decides that")
        if base not in kinds:
            raise CannotLoadError(f"--engine-opt {given}: vLLM has no such argument (those of `vllm serve --help`)")
        flag = name.replace("_", "-")
        switch = _SWITCH.get(value.lower()) if "bool" in kinds[base] else None
        if switch is None:
            words.append(f"--{flag}={value}")
        else:
            words.append(f"--{flag}" if switch else f"--no-{flag}")
    return words


def _config(spec: EngineSpec) -> Any:  # noqa: ANN401 - as above
    """Build vLLM's configuration as its own command line would. Raises CannotLoadError."""
    arguments = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs
    tools = importlib.import_module("vllm.utils.argparse_utils")
    kinds = {field.name: str(field.type) for field in fields(arguments)}
    ours = {
        "dtype": spec.dtype if spec.device.startswith("cuda") else dtype_on(spec.device, spec.dtype),
        **({"max_model_len": str(spec.max_model_len)} if spec.max_model_len else {}),
        **({"max_num_seqs": str(spec.slots)} if spec.slots else {}),
    }
    given = {name.replace("-", "_"): value for name, value in spec.options.items()}
    words = words_of(ours | given, kinds)

    class Parser(tools.FlexibleArgumentParser):  # type: ignore[misc, name-defined] # vLLM is not typed here
        def error(self, message: str) -> Never:
            raise CannotLoadError(f"--engine-opt: {message}")

    parser = arguments.add_cli_args(Parser())
    parsed = parser.parse_args([f"--model={spec.model_path}", "--skip-tokenizer-init", *words])
    made = arguments.from_cli_args(parsed)
    usage = importlib.import_module(
        "vllm.usage.usage_lib"
    ).UsageContext.OPENAI_API_SERVER  # its defaults: those of serve
    try:
        return made.create_engine_config(usage)
    except (ValueError, OSError, KeyError) as error:  # pydantic's are ValueErrors
        raise CannotLoadError(f"vLLM cannot serve {spec.model}: {error}") from error


# --- the engine ------------------------------------------------------------------------------------------------------


def _make(spec: EngineSpec, vllm: Any, config: Any) -> VllmEngine:  # noqa: ANN401 - as above
    client = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM

    def make(steps: StepLog) -> Any:  # noqa: ANN401 - as above
        return client.from_vllm_config(config, stat_loggers=[steps], disable_log_stats=True)

    return VllmEngine(
        vllm,
        make,
        describe_capacity=lambda made: capacity_of(made.vllm_config),
        vocabulary=int(config.model_config.get_vocab_size()),
        has_keyed_noise=bool(getattr(config, "use_v2_model_runner", False)),
        takes_seeds=takes_seeds(spec, config),
        revision=revision_of(spec, config),
    )


def capacity_of(config: Any) -> Capacity:  # noqa: ANN401 - as above
    """Read what vLLM's scheduler and memory hold; processes have added what they found out when they started."""
    cache, parallel = config.cache_config, config.parallel_config
    return Capacity(
        slots=int(config.scheduler_config.max_num_seqs) * int(getattr(parallel, "data_parallel_size", 1)),
        context=int(config.model_config.max_model_len),
        kv_tokens=int(cache.num_gpu_blocks or 0) * int(cache.block_size or 0),
    )


def takes_seeds(spec: EngineSpec, config: Any) -> bool:  # noqa: ANN401 - as above
    """Say whether requests may have seeds: on a CPU vLLM 0.32 dies of one whose prompt it reads in pieces."""
    has_pieces = bool(getattr(config.scheduler_config, "enable_chunked_prefill", True))
    return spec.device != "cpu" or not has_pieces or bool(getattr(config, "use_v2_model_runner", False))


def revision_of(spec: EngineSpec, config: Any) -> str:  # noqa: ANN401 - as above
    """Name weights, type and engine; and how weights are quantised where an option says so."""
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    quantised = str(spec.options.get("quantization", ""))
    return "-".join(part for part in (spec.revision, dtype if spec.revision else "", quantised, "vllm") if part)


_WARM_UP: Final = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=20, seed=1),
    SamplingParams(temperature=0.8, seed=1, repetition_penalty=1.1, logprobs=1),
)


def _warm_up(engine: VllmEngine, progress: Progress) -> None:
    """Draw a few tokens in each way. Raises what ends an engine, or RuntimeError."""
    left = set(range(len(_WARM_UP)))
    for ticket, sampling in enumerate(_WARM_UP):
        engine.submit(TokenRequest(ticket=ticket, prompt_ids=_WARM_PROMPT, max_new_tokens=4, sampling=sampling))
    with contextlib.ExitStack() as undo:
        undo.callback(engine.close)
        while left:
            left -= {event.ticket for event in engine.poll(_WARM_S) if _is_over(event)}
            progress("warming", 100.0 * (1 - len(left) / len(_WARM_UP)))
        undo.pop_all()


def _is_over(event: TokenEvent) -> bool:
    if event.error is not None:
        raise RuntimeError(f"vLLM has drawn no token: {event.error}")
    return event.finish_reason is not None
