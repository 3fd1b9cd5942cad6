"""How close the `generate` engine comes to what a GPU's memory allows, with random weights in shapes of real models.

At small batches a step has to read every weight once, and the keys and values of every sequence once: that many bytes
over the bandwidth that a plain copy reaches in the same run is the shortest a step can take, and the share of it that a
step gets is what is printed. docs/benchmarks.md says
how to read the figures. Random weights speak nonsense; they are as fast as others.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table

from zmqrt.worker.engines.base import SamplingParams, TokenEngine, TokenRequest

HERE: Final = Path(__file__).parent
SHAPES: Final = {
    # vocabulary, width, MLP width, layers, heads, kv heads, size of a head, whether embedding and head are one
    "tiny": (512, 128, 352, 4, 4, 2, 32, True),
    "1b": (128_256, 2048, 8192, 16, 32, 8, 64, True),
    "8b": (128_256, 4096, 14_336, 32, 32, 8, 128, False),
}
_WARM_UP_STEPS: Final = 12
_COPIES: Final = 20


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it runs, and how fast that copies."""

    device: str
    name: str
    bytes_per_s: float


class StepTime(msgspec.Struct, frozen=True):
    """Decode steps of one batch size, medians. `host_ms` is what the host needs to launch one and read one."""

    batch: int
    step_ms: float
    host_ms: float
    roofline_ms: float
    share_of_roofline: float
    tokens_per_s: float


class ShapeReport(msgspec.Struct, frozen=True):
    """All that was measured with one shape."""

    shape: str
    way: dict[str, str]
    flash_difference: dict[str, float]
    steps: list[StepTime]
    without: dict[str, StepTime]


class Report(msgspec.Struct, frozen=True):
    """What is written to a file."""

    command: str
    versions: dict[str, str]
    card: str
    copy_bytes_per_s: float
    context: int
    kernel_differences: dict[str, float]
    shapes: list[ShapeReport]


# --- what it runs on -------------------------------------------------------------------------------------------------


def read_model_directory(device: str) -> Machine:
    """Measure how fast memory is copied: what is read and what is written both count."""
    import torch

    is_cuda = device.startswith("cuda")
    size = (2 << 30) if is_cuda else (64 << 20)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times: list[float] = []
    for _ in range(_COPIES):
        _settle(device)
        began = time.perf_counter()
        target.copy_(source)
        _settle(device)
        times.append(time.perf_counter() - began)
    name = torch.cuda.get_device_name(device) if is_cuda else platform.processor() or "cpu"
    return Machine(device, name, 2 * size / statistics.median(times))


def _settle(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def build(shape: str, device: str, context: int) -> Any:  # noqa: ANN401 - transformers' models are untyped
    """Make a random model where it will run."""
    import torch

    from zmqrt.worker.engines.generate.hf_loader import untyped

    transformers = untyped("transformers")
    vocabulary, width, mlp, layers, heads, kv_heads, size, is_tied = SHAPES[shape]
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=size,
        max_position_embeddings=max(8192, 2 * context),
        tie_word_embeddings=is_tied,
        rope_theta=500_000.0,
        attn_implementation="sdpa",
    )
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = None
    return model.eval()


# --- what is measured ------------------------------------------------------------------------------------------------


class Clocked:
    """A runner whose launches and readings are timed, without the waiting."""

    def __init__(self, runner: Any) -> None:  # noqa: ANN401 - any runner
        self._runner = runner
        self.vocabulary = runner.vocabulary
        self.spent_s = 0.0

    def launch(self, step: Any) -> Any:  # noqa: ANN401 - passed through
        """Time a launch."""
        began = time.perf_counter()
        lost = self._runner.launch(step)
        self.spent_s += time.perf_counter() - began
        return lost

    def collect(self, timeout_s: float) -> Any:  # noqa: ANN401 - passed through
        """Read a step."""
        return self._runner.collect(timeout_s)

    def close(self) -> None:
        """Close it."""
        self._runner.close()


def fill(engine: TokenEngine, batch: int, context: int, new_tokens: int, vocabulary: int) -> None:
    """Let so many sequences of that length run, and wait until all of them decode.

    They share their prompt but for its last token: all but the first copy its keys and values, and do not compute them.
    """
    shared = [(31 * number + 7) % vocabulary for number in range(context - 1)]
    started: set[int] = set()
    for ticket in range(batch):
        engine.submit(
            TokenRequest(
                ticket=ticket,
                prompt_ids=[*shared, ticket % vocabulary],
                max_new_tokens=new_tokens,
                ignore_eos=True,
                sampling=SamplingParams(temperature=1.0, seed=ticket),
            )
        )
        while ticket not in started:
            started.update(event.ticket for event in engine.poll(1.0) if event.token_ids)


def time_steps(engine: Any, runner: Clocked, batch: int, steps: int) -> tuple[float, float]:  # noqa: ANN401
    """Return the median time of a step and of the host's part in it, in seconds, while all sequences decode."""
    for _ in range(_WARM_UP_STEPS):
        engine.poll(1.0)
    times: list[float] = []
    host: list[float] = []
    at = time.perf_counter()
    while len(times) < steps:
        spent = runner.spent_s
        if sum(len(event.token_ids) for event in engine.poll(1.0)) == batch:
            now = time.perf_counter()
            times.append(now - at)
            host.append(runner.spent_s - spent)
            at = now
    return statistics.median(times), statistics.median(host)


def drop(engine: TokenEngine, batch: int) -> None:
    """End all sequences."""
    for ticket in range(batch):
        engine.cancel(ticket)
    for _ in range(4):
        engine.poll(0.0)


@contextmanager
def telling(text: str) -> Generator[None]:
    """Say what is going on, for as long as it does."""
    print(f"{text} …", end=" ", flush=True, file=sys.stderr)
    began = time.perf_counter()
    yield
    print(f"{time.perf_counter() - began:.1f} s", file=sys.stderr)


class Bench:
    """Measures one shape after the other."""

    def __init__(self, machine: Machine, *, batches: Sequence[int], context: int, steps: int) -> None:
        self._machine = machine
        self._batches = sorted(batches)
        self._context = context
        self._steps = steps
        self._new_tokens = steps + 4 * _WARM_UP_STEPS + max(batches)

    def run(self, shape: str) -> ShapeReport:
        """Build the model, run it by transformers, then take its weights and run it ourselves."""
        import torch

        with telling(f"{shape}: building random weights"):
            model = build(shape, self._machine.device, self._context)
            _settle(self._machine.device)
        weights = sum(one.numel() * one.element_size() for one in model.parameters())
        if not SHAPES[shape][-1]:  # of the embedding a step reads a few rows; the head is another matrix
            weights -= model.get_input_embeddings().weight.numel() * model.dtype.itemsize
        report = self._ours(shape, model, weights)
        del model
        gc.collect()
        if self._machine.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return report

    def _ours(self, shape: str, model: Any, weights: int) -> ShapeReport:  # noqa: ANN401
        from zmqrt.worker.engines.generate import flash
        from zmqrt.worker.engines.generate.llama import LlamaDecoder
        from zmqrt.worker.engines.generate.ops import TorchOps

        device = self._machine.device
        operations, why_not = best_operations(model.dtype, device)
        decoder = LlamaDecoder(model, operations)
        why_no_flash = flash.why_not(decoder.shape, model.dtype, device)
        difference: dict[str, float] = {}
        if why_no_flash is None:
            for name, is_piece in (("single", False), ("piece", True)):
                difference[name] = flash.difference(decoder.shape, model.dtype, device, is_piece=is_piece)
        operation = flash.flash if why_no_flash is None else flash.plain
        kv_bytes = decoder.shape.bytes_per_token(model.dtype)

        def timed(batches: Sequence[int], *, graphs: bool) -> list[StepTime]:
            return self._time(decoder, operations, operation, batches, (weights, kv_bytes), graphs=graphs)

        way = {
            "kernels": operations.name if why_not is None else f"torch ({why_not})",
            "flash": "torch's" if why_no_flash is None else f"plain arithmetic ({why_no_flash})",
        }
        with telling(f"{shape}: batches of {', '.join(map(str, self._batches))}"):
            steps = timed(self._batches, graphs=True)
        without: dict[str, StepTime] = {}
        if device.startswith("cuda"):
            with telling(f"{shape}: without graphs, and without kernels"):
                [without["graphs"]] = timed(self._batches[:1], graphs=False)
                decoder.operations = TorchOps()
                [without["kernels"]] = timed(self._batches[:1], graphs=True)
        return ShapeReport(shape, way, difference, steps, without)

    def _time(
        self,
        decoder: Any,  # noqa: ANN401 - the decoder, whichever operations it uses
        operations: Any,  # noqa: ANN401
        operation: Any,  # noqa: ANN401
        batches: Sequence[int],
        sizes: tuple[int, int],
        *,
        graphs: bool,
    ) -> list[StepTime]:
        from zmqrt.worker.engines.generate.device_runner import DeviceRunner
        from zmqrt.worker.engines.generate.engine import GenerateEngine
        from zmqrt.worker.engines.generate.schedule import SchedulerLimits

        device = self._machine.device
        length = self._context + self._new_tokens
        kv_tokens = max(batches) * (length + 1)
        limits = SchedulerLimits(slots=max(batches), context=length, chunk_tokens=512, depth=2)
        runner = DeviceRunner(
            decoder,
            kv_tokens,
            limits,
            dtype=decoder.dtype,
            device=device,
            operations=operations,
            operation=operation,
        )
        if graphs and device.startswith("cuda"):
            runner.record(lambda _percent: None)
        clocked = Clocked(runner)
        engine = GenerateEngine(clocked, kv_tokens=kv_tokens, limits=limits)
        found: list[StepTime] = []
        for batch in batches:
            fill(engine, batch, self._context, self._new_tokens, runner.vocabulary)
            step_s, host_s = time_steps(engine, clocked, batch, self._steps)
            drop(engine, batch)
            weights, kv_bytes = sizes
            roofline_s = (weights + batch * (self._context + self._steps // 2) * kv_bytes) / self._machine.bytes_per_s
            found.append(
                StepTime(
                    batch=batch,
                    step_ms=1000 * step_s,
                    host_ms=1000 * host_s,
                    roofline_ms=1000 * roofline_s,
                    share_of_roofline=roofline_s / step_s,
                    tokens_per_s=batch / step_s,
                )
            )
        del engine, clocked, runner
        gc.collect()
        return found


def best_operations(dtype: Any, device: str) -> tuple[Any, str | None]:  # noqa: ANN401 - torch's type, our operations
    """Return the operations that an engine would take on this device, and why not the kernels."""
    from zmqrt.worker.engines.generate.ops import TorchOps

    if not device.startswith("cuda"):
        return TorchOps(), "there is no GPU"
    try:
        from zmqrt.worker.engines.generate import kernel_ops
    except ImportError as error:
        return TorchOps(), str(error)
    why_not = kernel_ops.why_not(dtype, device)
    return (kernel_ops.KernelOps() if why_not is None else TorchOps()), why_not


def kernel_differences(device: str) -> dict[str, float]:
    """Return how far each kernel is from plain torch."""
    import torch

    if not device.startswith("cuda"):
        return {}
    try:
        from zmqrt.worker.engines.generate import kernel_ops
    except ImportError:
        return {}
    return kernel_ops.differences(torch.bfloat16, device)


def show(report: Report) -> None:
    """Print it."""
    console = Console(width=max(110, Console().width))
    console.print(f"{report.card}: copies {report.copy_bytes_per_s / 1e12:.2f} TB/s; context {report.context} tokens")
    for one in report.shapes:
        table = Table(title=f"{one.shape}: kernels {one.way['kernels']}, flash attention {one.way['flash']}")
        for name in ("batch", "ms a step", "host ms", "roofline ms", "share", "tokens/s"):
            table.add_column(name, justify="right")
        for step in one.steps:
            share, rate = f"{step.share_of_roofline:.0%}", f"{step.tokens_per_s:.0f}"
            times = (f"{step.step_ms:.2f}", f"{step.host_ms:.2f}", f"{step.roofline_ms:.2f}")
            table.add_row(str(step.batch), *times, share, rate)
        console.print(table)
        for name, step in one.without.items():
            console.print(f"batch {step.batch} without {name}: {step.step_ms:.2f} ms")
        for name, value in one.flash_difference.items():
            console.print(f"flash attention, {name}: at most {value:.2g} from the definition")
    for name, value in report.kernel_differences.items():
        console.print(f"kernel {name}: at most {value:.2g} from plain torch")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


@click.command()
@click.option("--device", default="cuda:0", show_default=True, help="cpu only tries that the script itself runs.")
@click.option("--shapes", default="1b,8b", show_default=True, help=f"Out of {', '.join(SHAPES)}.")
@click.option("--batches", default="1,8,32,64,128", show_default=True, help="Sequences at once.")
@click.option("--context", default=1024, show_default=True, help="Tokens that each has before it is measured.")
@click.option("--steps", default=64, show_default=True, help="Steps measured of each batch.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(*, device: str, shapes: str, batches: str, context: int, steps: int, save: bool) -> None:
    """Measure decode steps on a GPU against the bandwidth of its memory, in one run of a few minutes."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU here; --device cpu --shapes tiny tries the script without one")
    unknown = [name for name in shapes.split(",") if name not in SHAPES]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: there are {', '.join(SHAPES)}", param_hint="--shapes")
    with telling("copying"):
        machine = read_model_directory(device)
    bench = Bench(machine, batches=[int(one) for one in batches.split(",")], context=context, steps=steps)
    report = Report(
        command=" ".join(["python", *sys.argv]),
        versions={name: _version(name) for name in ("torch", "triton", "transformers")}
        | {"python": platform.python_version()},
        card=machine.name,
        copy_bytes_per_s=machine.bytes_per_s,
        context=context,
        kernel_differences=kernel_differences(device),
        shapes=[bench.run(shape) for shape in shapes.split(",")],
    )
    show(report)
    folder = HERE / ("results" if save else "out")
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime("gpu-%Y%m%d-%H%M%S.json")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    click.echo(f"written to {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
