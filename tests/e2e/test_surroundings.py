"""Programs in surroundings that they do not expect: environment, working directory, locale, home, disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.stack import Process, Stack, running, start
from zmqrt.client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

FOREIGN = {
    "ZMQRT_SERVICE_HOST": "10.0.0.1",
    "ZMQRT_PORT": "tcp://10.0.0.1:8000",
    "ZMQRT_PORT_8000_TCP_ADDR": "10.0.0.1",
    "ZMQRT_BROKER_PORT_7555_TCP": "tcp://10.0.0.2:7555",
    "ZMQRT_OF_ANOTHER_VERSION": "1",
    "HOST": "x86_64-conda-linux-gnu",
    "PORT": "tcp://10.0.0.1:8000",
    "LOG_LEVEL": "WARN",
    "API_KEYS": "sk-abc",
    "MODEL_PATH": "/opt/yolo.pt",
    "MODEL_NAME": "gpt-4o",
    "MAX_RETRIES": "three",
    "NODE_ID": "a\tb",
    "GATEWAY_URL": "http://gateway",
}
NEEDS_HOME = ("HOME", "ZMQRT_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
ODD_NAME = "Größe-ночь-夜"
LOCALES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    pytest.param({"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}, marks=pytest.mark.slow),
    pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
]


def run(
    *words: str, cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a module as an installed script would: nothing of the working directory on its import path."""
    return subprocess.run(
        [sys.executable, "-P", "-m", *words],
        cwd=cwd,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def fleet() -> Iterator[Stack]:
    """A broker and a mock node."""
    with running() as stack:
        yield stack


def warnings_of(process: Process) -> str:
    """Return what a role said of its settings."""
    records = [json.loads(line) for line in process.lines if line.startswith("{")]
    return "\n".join(one["message"] for one in records if one.get("logger") == "zmqrt.settings")


def test_what_others_put_into_the_environment_stops_no_program(tmp_path: Path) -> None:
    """Kubernetes, conda, another product: each role starts as if it were not there, and names it."""
    with Stack() as stack:
        endpoints = ("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0")
        broker = start("broker", *endpoints, env=FOREIGN)
        stack.processes.append(broker)
        stack.clients, stack.workers = broker.endpoints["clients"], broker.endpoints["workers"]
        worker = stack.worker(env=FOREIGN)
        bridge = start("bridge_http", "--broker", stack.clients, "--port", "0", env=FOREIGN)
        stack.processes.append(bridge)

        assert bridge.endpoints["http"].startswith("http://127.0.0.1:")
        for process, names in (
            (broker, ("ZMQRT_SERVICE_HOST", "ZMQRT_PORT", "ZMQRT_OF_ANOTHER_VERSION", "LOG_LEVEL", "MAX_RETRIES")),
            (worker, ("ZMQRT_SERVICE_HOST", "ZMQRT_OF_ANOTHER_VERSION", "LOG_LEVEL", "MODEL_NAME", "NODE_ID")),
            (bridge, ("ZMQRT_SERVICE_HOST", "ZMQRT_OF_ANOTHER_VERSION", "LOG_LEVEL", "HOST", "API_KEYS")),
        ):
            said = warnings_of(process)
            assert [name for name in names if name not in said] == [], said
        stack.wait_for_nodes(1)
        asked = run(
            "zmqrt.client.cli", "infer", "hi", "--broker", stack.clients, "-n", "3", cwd=tmp_path, environ=FOREIGN
        )
        assert asked.returncode == 0
        assert "LOG_LEVEL" not in asked.stderr  # a client reads no server's names


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("worker", ("--served-model-name", "my model")),
        pytest.param("worker", ("--served-model-name", "modèle"), marks=pytest.mark.slow),
        pytest.param("worker", ("--node-id", "a\nb"), marks=pytest.mark.slow),
        ("broker", ("--broker-id", "b" * 200)),
        ("bridge_http", ("--default-model", "my model")),
        ("client.cli", ("infer", "hi", "--default-model", "my model")),
    ],
)
def test_a_name_that_cannot_travel_is_78_at_the_start(role: str, words: tuple[str, ...]) -> None:
    """The letters that may are named."""
    result = run(f"zmqrt.{role}", *words)

    assert result.returncode == 78, result.stderr
    assert "expected 1 to 128" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_child_runs_what_lies_in_the_working_directory(tmp_path: Path) -> None:
    """A stranger's msgspec.py there is not imported: by broker, worker, bridge, engine, nor by what commands start."""
    for name in ("msgspec", "zmq", "json", "click", "torch", "tokenizers", "uvloop", "starlette"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\nraise SystemExit(3)"
        )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    demo = subprocess.run(
        [sys.executable, "-P", "-m", "zmqrt.client.cli", "demo", "--mock"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "smollm2-135m" in run("zmqrt.client.cli", "models", "list-known", cwd=tmp_path).stdout
    assert not (tmp_path / "ran").exists()


def test_an_engine_of_ones_own_may_lie_in_the_working_directory(fleet: Stack, tmp_path: Path) -> None:
    """It is looked for there last, and only because it was asked for."""
    (tmp_path / "mine.py").write_text("from zmqrt.worker.engines.mock import factory\n", encoding="utf-8")
    (tmp_path / "msgspec.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    words = ("--broker", fleet.workers, "--engine", "mine:factory", "--device", "cpu", "--log-format", "json")
    command = [sys.executable, "-P", "-m", "zmqrt.worker", *words]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout is not None
            assert json.loads(worker.stdout.readline())["event"] == "ready"
        finally:
            worker.terminate()


@pytest.mark.parametrize("locale", LOCALES)
def test_no_locale_ends_a_role_at_its_ready_line(fleet: Stack, locale: dict[str, str]) -> None:
    """A node's name may hold any letters; what the encoding lacks is written as an escape."""
    for role, words, shown in (
        ("worker", ("--broker", fleet.workers, "--engine", "mock", "--node-id", ODD_NAME), "is ready"),
        (
            "broker",
            ("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0", "--broker-id", ODD_NAME),
            "ready",
        ),
    ):
        command = [sys.executable, "-m", f"zmqrt.{role}", *words, "--log-format", "text"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **locale}) as process:
            try:
                assert process.stdout is not None
                assert shown in process.stdout.readline().decode("latin-1")
            finally:
                process.terminate()
        assert process.wait(20) == 0
    error = run("zmqrt.worker", "--served-model-name", ODD_NAME, environ=locale)
    assert (error.returncode, "Traceback" in error.stderr) == (78, False)
    missing = run("zmqrt.client.cli", "models", "fetch", ODD_NAME, environ=locale)
    assert missing.returncode in (1, 2)
    assert "Traceback" not in missing.stderr
    assert run("zmqrt.worker", "--help", environ=locale).returncode == 0


@pytest.mark.skipif(
    shutil.which("setpriv") is None or os.geteuid() != 0, reason="only root can become a user that does not exist"
)
def test_a_user_without_entry_and_home_is_told_what_to_set() -> None:
    """One sentence that names the setting."""
    environ = {name: value for name, value in os.environ.items() if name not in NEEDS_HOME}
    rights = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")  # to read this interpreter at all
    nobody = ("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", *rights)
    result = subprocess.run(
        [*nobody, sys.executable, "-P", "-m", "zmqrt.client.cli", "models", "fetch", "tiny-random"],
        env=environ,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 1
    assert "set ZMQRT_CACHE (or HOME)" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_cache_that_cannot_be_written_names_itself_and_the_setting(tmp_path: Path) -> None:
    """A full disk (here: the largest file allowed), a file in its place. The size is told where it is known."""
    (tmp_path / "file").touch()
    blocked = run("zmqrt.client.cli", "models", "fetch", "tiny-random", environ={"ZMQRT_CACHE": str(tmp_path / "file")})
    assert blocked.returncode == 1
    assert f"models cannot be kept in {tmp_path / 'file'}: File exists; set ZMQRT_CACHE" in blocked.stderr

    if sys.platform != "win32":
        import resource

        full = subprocess.run(
            [sys.executable, "-m", "zmqrt.client.cli", "models", "fetch", "tiny-random"],
            env={**os.environ, "ZMQRT_CACHE": str(tmp_path / "full")},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert full.returncode == 1
        words = (
            rf"models cannot be kept in {tmp_path / 'full'}: File too large (about 2 MiB are needed); set ZMQRT_CACHE"
        )
        assert words in full.stderr
        assert "Traceback" not in full.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a directory in use cannot be deleted there")
def test_programs_live_without_a_working_directory(fleet: Stack, tmp_path: Path) -> None:
    """It was deleted under them."""
    gone = tmp_path / "gone"
    gone.mkdir()
    words = f"rmdir {gone} && exec {sys.executable} -m zmqrt.client.cli infer hi -n 3 --broker {fleet.clients}"
    result = subprocess.run(["sh", "-c", words], cwd=gone, capture_output=True, text=True, timeout=60, check=False)

    assert (result.returncode, result.stderr) == (0, "")


def test_a_prompt_of_a_pipe_is_read_in_its_own_encoding(fleet: Stack) -> None:
    """PowerShell may write UTF-16, editors a byte order mark: the answer is that to the same words."""
    said: set[bytes] = set()
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        command = [
            sys.executable,
            "-m",
            "zmqrt.client.cli",
            "infer",
            "-",
            "-n",
            "5",
            "-t",
            "0",
            "--broker",
            fleet.clients,
        ]
        asked = subprocess.run(command, input="héllo".encode(encoding), capture_output=True, timeout=60, check=True)
        said.add(asked.stdout)

    assert len(said) == 1


def test_a_plain_client_key_may_ask_and_nothing_more(tmp_path: Path) -> None:
    """Of what keygen makes, only admin/ may drain; the command uses it where it is."""
    keys = tmp_path / "keys"
    assert run("zmqrt.client.cli", "keygen", str(keys)).returncode == 0
    with Stack() as stack:
        stack.broker("--keys", str(keys))
        stack.worker("--keys", str(keys), node_id="node")
        with Client(stack.clients, keys=keys) as client:
            assert client.status().broker_id
        (keys / "admin").rename(tmp_path / "admin")
        reach = ("--broker", stack.clients, "--keys", str(keys))
        refused = run("zmqrt.client.cli", "drain", "node", *reach)
        assert refused.returncode == 77
        assert "'client' is not an admin" in refused.stderr
        (tmp_path / "admin").rename(keys / "admin")
        assert run("zmqrt.client.cli", "drain", "node", *reach).returncode == 0

    (keys / "client" / "secret.key").chmod(0o644)
    (keys / "admin" / "secret.key").chmod(0o644)
    loose = run("zmqrt.client.cli", "status", *reach)
    assert loose.returncode == 78
    assert "run: chmod 600" in loose.stderr
