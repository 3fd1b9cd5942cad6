"""Which devices a worker takes: found, hidden, chosen, missing."""

from pathlib import Path

import pytest

from zmqrt.protocol.errors import ConfigurationError
from zmqrt.worker import device_discovery
from zmqrt.worker.config import WorkerSettings
from zmqrt.worker.cuda_setup import CudaFacts
from zmqrt.worker.device_discovery import DeviceSpec, find_devices, largest_memory, select, visible
from zmqrt.worker.nvidia_driver import DriverReport, Gpu

GPUS = (Gpu("GPU-aa11", "H100", 80 << 30), Gpu("GPU-ab22", "H100", 80 << 30), Gpu("GPU-cc33", "L4", 24 << 30))


def no_gpus(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Let the driver list none."""
    monkeypatch.setattr(device_discovery, "ask_driver", lambda: DriverReport(why_none=why))


@pytest.fixture(autouse=True)
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the driver list three devices."""
    monkeypatch.setattr(device_discovery, "ask_driver", lambda: DriverReport(gpus=GPUS))


def handles(setting: str | None) -> list[str]:
    """Return what a value of CUDA_VISIBLE_DEVICES leaves."""
    return [device.handle for device in visible(GPUS, setting)]


def test_the_mock_has_two_devices_that_no_driver_knows() -> None:
    """Wherever it runs."""
    found = find_devices(WorkerSettings(use_mock_model=True))

    assert [(one.id, one.kind) for one in found] == [("mock:0", "mock"), ("mock:1", "mock")]


def test_auto_takes_cuda_where_there_is_some() -> None:
    """All of it, with name and memory for the operator."""
    found = find_devices(WorkerSettings(), {})

    assert [one.id for one in found] == ["cuda:0", "cuda:1", "cuda:2"]
    assert found[2].info().name == "L4"
    assert found[2].info().memory_bytes == 24 << 30


def test_auto_takes_the_cpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an error: it is slower, not wrong."""
    no_gpus(monkeypatch, "no driver")

    (cpu,) = find_devices(WorkerSettings(), {})

    assert (cpu.id, cpu.kind) == ("cpu", "cpu")
    assert cpu.memory_bytes > 0


def test_cuda_that_is_not_there_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver said, and what to do instead."""
    no_gpus(monkeypatch, "NVML: driver not loaded")

    with pytest.raises(ConfigurationError, match=r"driver not loaded.*--device cpu"):
        find_devices(WorkerSettings(device="cuda"), {})


def test_a_cpu_in_the_place_of_a_gpu_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log and in the status of the node, with the command that repairs it."""
    mismatch = CudaFacts(driver=DriverReport(why_none="NVML: Driver/library version mismatch"), kernel_driver="535.1")

    def gather(*_: object) -> CudaFacts:
        return mismatch

    no_gpus(monkeypatch, mismatch.driver.why_none)
    monkeypatch.setattr(device_discovery, "gather", gather)
    (cpu,) = find_devices(WorkerSettings(), {})

    assert cpu.kind == "cpu"
    assert cpu.fallback.endswith("run: sudo reboot")
    assert cpu.fallback in caplog.text


def test_cuda_that_is_hidden_is_refused_by_the_name_of_the_variable() -> None:
    """It is here, and somebody hid it."""
    with pytest.raises(
        ConfigurationError, match=r"2 x H100 .*, L4 .*, hidden by CUDA_VISIBLE_DEVICES=: .*unset CUDA_VISIBLE_DEVICES"
    ):
        find_devices(WorkerSettings(device="cuda"), {"CUDA_VISIBLE_DEVICES": ""})


def test_devices_are_chosen_by_number_or_id_in_the_order_of_the_request() -> None:
    """Numbers count what is visible."""
    found = find_devices(WorkerSettings(devices=("1", "0")), {"CUDA_VISIBLE_DEVICES": "2,0"})

    assert [(one.id, one.handle) for one in found] == [("cuda:1", "GPU-aa11"), ("cuda:0", "GPU-cc33")]
    assert select(found, ["cuda:0"]) == [found[1]]


def test_a_device_that_is_not_here_is_refused_with_those_that_are() -> None:
    """The message is the list to choose from."""
    with pytest.raises(ConfigurationError, match=r"no device 7 here; found: cuda:0, cuda:1, cuda:2"):
        find_devices(WorkerSettings(devices=("0", "7")), {})


def test_a_device_named_twice_is_refused() -> None:
    """Two processes on one device would fight for its memory."""
    with pytest.raises(ConfigurationError, match="twice"):
        select([DeviceSpec(id="cpu", kind="cpu")], ["0", "cpu"])


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        (None, ["GPU-aa11", "GPU-ab22", "GPU-cc33"]),
        ("", []),
        ("-1", []),
        ("2, 0", ["GPU-cc33", "GPU-aa11"]),
        ("1,9,0", ["GPU-ab22"]),
        ("1,-1,0", ["GPU-ab22"]),
        ("GPU-cc33", ["GPU-cc33"]),
        ("GPU-ab", ["GPU-ab22"]),
        ("GPU-a", []),
        ("MIG-1/2/3,0", ["MIG-1/2/3", "GPU-aa11"]),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(setting: str | None, left: list[str]) -> None:
    """Order counts, what is wrong or ambiguous ends the list, beginnings of ids are enough."""
    assert handles(setting) == left


def test_the_largest_device_decides_what_a_node_can_hold() -> None:
    """As if it were empty; where one does not tell, nothing is known."""
    l4, h100 = visible(GPUS, "2,0")
    unknown = DeviceSpec(id="cuda:2", kind="cuda")
    most = largest_memory([l4, h100])

    assert most is not None
    assert (most.device, most.free_bytes) == ("cuda:1", 80 << 30)
    assert largest_memory([l4, unknown]) is None
    assert largest_memory([DeviceSpec(id="mock:0", kind="mock", memory_bytes=1)]) is None


def test_each_slice_of_a_device_is_a_device() -> None:
    """In MIG mode; without a slice there is none, and CUDA itself takes the first."""
    slices = tuple(Gpu(f"MIG-{letter}", "A100 MIG 3g.20gb", 20 << 30) for letter in "ab")
    sliced = Gpu("GPU-dd", "A100", 40 << 30, (8, 0), slices)
    unsliced = Gpu("GPU-ee", "A100", 40 << 30, (8, 0), ())
    left = {
        setting: [device.handle for device in visible([sliced, unsliced], setting)]
        for setting in (None, "0", "1", "MIG-b")
    }

    assert left == {None: ["MIG-a", "MIG-b"], "0": ["MIG-a"], "1": [], "MIG-b": ["MIG-b"]}
    assert visible([sliced], "MIG-b")[0].memory_bytes == 20 << 30


def test_a_process_sees_its_own_device_alone() -> None:
    """By id, since CUDA and the driver count differently; inside it is always the first."""
    _, second, _ = visible(GPUS, None)

    assert second.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-ab22"
    assert second.name_inside == "cuda:0"


@pytest.mark.parametrize(
    ("choice", "environ", "threads"),
    [
        ("cpu", {}, [12]),
        ("cpu", {"OMP_NUM_THREADS": "5,2"}, [5]),
        ("cpu", {"OMP_NUM_THREADS": "many"}, [12]),
        ("cuda", {}, [2, 2, 2]),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1"}, [1]),
    ],
)
def test_devices_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, choice: str, environ: dict[str, str], threads: list[int]
) -> None:
    """The CPU takes all of them, a GPU needs few, and what an operator has set counts."""
    monkeypatch.setattr(device_discovery, "usable_cores", lambda: 12)

    found = find_devices(WorkerSettings(device=choice), environ)

    assert [one.threads for one in found] == threads
    assert [one.environment()["OMP_NUM_THREADS"] for one in found] == [str(count) for count in threads]
    assert found[0].environment(threads="7")["OMP_NUM_THREADS"] == "7"


def test_more_devices_than_cores_have_a_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """None would be an engine that cannot run."""
    monkeypatch.setattr(device_discovery, "usable_cores", lambda: 2)

    assert [one.threads for one in find_devices(WorkerSettings(), {})] == [1, 1, 1]


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocator_of_a_gpu_grows_what_it_has_unless_somebody_set_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its new name or its old one."""
    for one in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(one, raising=False)
    gpu = DeviceSpec(id="cuda:0", kind="cuda", handle="GPU-1")

    assert gpu.environment()["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setattr(device_discovery, "_WSL", tmp_path)
    assert "PYTORCH_ALLOC_CONF" not in gpu.environment(), "in Linux on Windows it may fail"
    monkeypatch.setattr(device_discovery, "_WSL", tmp_path / "none")
    assert "PYTORCH_ALLOC_CONF" in gpu.environment()
    monkeypatch.setenv(name, "max_split_size_mb:64")
    assert "PYTORCH_ALLOC_CONF" not in gpu.environment()


def test_a_process_on_the_cpu_keeps_to_its_threads() -> None:
    """Threads that spin while they wait would take the cores of the other processes."""
    cpu = DeviceSpec(id="cpu", kind="cpu")

    assert cpu.environment(threads="3") == {
        "CUDA_VISIBLE_DEVICES": "",
        "KMP_BLOCKTIME": "0",
        "OMP_NUM_THREADS": "3",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    assert cpu.name_inside == "cpu"


def over(*options: str, engine: str = "vllm") -> WorkerSettings:
    """Ask for an engine with options."""
    return WorkerSettings(engine=engine, engine_opt=options)


def test_an_engine_that_cuts_its_model_has_several_devices() -> None:
    """As many as its options say, in order; what is left over stays idle."""
    (pair,) = find_devices(over("tensor_parallel_size=2"))

    assert (pair.id, pair.name, pair.memory_bytes) == ("cuda:0+1", "2 x H100", 160 << 30)
    assert pair.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-aa11,GPU-ab22"
    assert pair.name_inside == "cuda:0"
    (three,) = find_devices(over("tensor-parallel-size=1", "pipeline_parallel_size=3"))
    assert three.id == "cuda:0+1+2"


def test_an_engine_over_other_machines_has_all_devices_of_this_one() -> None:
    """Ray gives it the others."""
    options = ("tensor_parallel_size=8", "distributed_executor_backend=ray")

    assert [one.id for one in find_devices(over(*options))] == ["cuda:0+1+2"]


def test_an_engine_over_more_devices_than_there_are_is_refused() -> None:
    """With both numbers. Another engine may mean something else by the same option."""
    with pytest.raises(ConfigurationError, match="over 4 devices, and there are 3"):
        find_devices(over("tensor_parallel_size=4"))
    assert len(find_devices(over("tensor_parallel_size=4", engine="my.own:engine"))) == 3
