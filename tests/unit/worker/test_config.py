"""What a worker's settings mean."""

from pathlib import Path

import pytest

from zmqrt.protocol.errors import ConfigurationError
from zmqrt.protocol.settings import Resolved, Surroundings, resolve
from zmqrt.worker.config import WorkerSettings


def settings(folder: Path, environ: dict[str, str] | None = None, **flags: object) -> Resolved[WorkerSettings]:
    """Return the settings that flags and environment make."""
    around = Surroundings(
        environ=environ or {}, directory=folder, user_directory=folder, roles={"worker": WorkerSettings}
    )
    return resolve(WorkerSettings, flags, surroundings=around)


def test_historic_names_still_configure_a_node(tmp_path: Path) -> None:
    """What used to be an HTTP gateway is a list of broker endpoints now."""
    environ = {
        "GATEWAY_URL": "tcp://127.0.0.1:1,tcp://127.0.0.1:2",
        "NODE_ID": "gpu-7",
        "NODE_MAX_CAPACITY": "12",
        "BATCH_MAX_SIZE": "4",
        "BATCH_MAX_LATENCY_MS": "20",
        "USE_MOCK_MODEL": "true",
        "REQUEST_TIMEOUT_SEC": "9",
    }

    found = settings(tmp_path, environ).settings

    assert found.broker == ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")
    assert (found.node_id, found.node_max_capacity, found.batch_max_size) == ("gpu-7", 12, 4)
    assert (found.batch_max_latency_ms, found.stall_timeout_s) == (20, 9.0)
    assert found.engine_name == "mock"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("MODEL_NAME", value) for value in ("gpt-4o", "resnet50", "my model")),
        *(("MODEL_PATH", value) for value in ("{folder}/yolo.pt", "{folder}/empty")),
        *(("GATEWAY_URL", value) for value in ("http://gateway:8000", "gateway", "tcp://10.0.0.1")),
        *(("NODE_ID", value) for value in ("a\nb", "n" * 129)),
        ("BATCH_MAX_SIZE", "auto"),
    ],
)
def test_variables_of_other_programs_change_nothing(tmp_path: Path, name: str, value: str) -> None:
    """A model that zmqrt cannot serve, an address that is none of ours: one warning that names the variable."""
    (tmp_path / "yolo.pt").touch()
    (tmp_path / "empty").mkdir()
    found = settings(tmp_path, {name: value.format(folder=tmp_path)})

    assert found.settings == settings(tmp_path).settings
    (warning,) = found.warnings
    assert warning.startswith(f"{name} in the environment is ignored")


def test_a_model_that_may_be_ours_is_taken_from_its_historic_name(tmp_path: Path) -> None:
    """A known name, a folder that holds a model, a place that is not mounted yet: then its absence is an error."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    for value in ("smollm2-135m", "tiny-random:seed=1", "hf:org/name", str(tmp_path / "mine"), "/not/here", "a.gguf"):
        assert settings(tmp_path, {"MODEL_PATH": value}).settings.model == value

    both = settings(tmp_path, {"MODEL_PATH": str(tmp_path), "MODEL_NAME": "minilm-l6"})
    assert both.settings.model == "minilm-l6"


@pytest.mark.parametrize("name", ["my model", "modèle", "a,b", "", "m" * 129, "a\nb", "a b:8"])
def test_a_name_that_no_broker_takes_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    """The letters that it may hold are named; else the node would wait for a WELCOME for ever."""
    with pytest.raises(ConfigurationError, match=r"served_model_name = .*A-Z a-z 0-9 \. _ : / -"):
        settings(tmp_path, served_model_name=name)
    with pytest.raises(ConfigurationError, match=r"control characters"):
        settings(tmp_path, node_id=f"a{name}\nb")


def test_node_names_may_hold_any_letters(tmp_path: Path) -> None:
    """They are shown to people, and nobody asks for them."""
    assert settings(tmp_path, node_id="Größe-7 ночь").settings.name == "Größe-7 ночь"


def test_max_concurrent_requests_warns_and_changes_nothing(tmp_path: Path) -> None:
    """It says what took its place."""
    found = settings(tmp_path, {"MAX_CONCURRENT_REQUESTS": "3"})

    assert "--node-max-capacity" in found.warnings[0]
    assert found.settings.node_max_capacity == 100


@pytest.mark.parametrize(
    ("flags", "service", "model"),
    [
        ({}, "smollm2-135m", "smollm2-135m"),
        ({"engine": "mock"}, "mock", None),
        ({"use_mock_model": "true"}, "mock", None),
        ({"use_mock_model": "true", "model": "toy"}, "toy", None),
        ({"model": "/models/Llama 3/"}, "Llama-3", "/models/Llama 3/"),
        ({"model": "hf:org/name"}, "name", "hf:org/name"),
        ({"model": "C:\\models\\tiny.gguf"}, "tiny", "C:\\models\\tiny.gguf"),
        ({"model": "a/b", "served_model_name": "chat"}, "chat", "a/b"),
        ({"engine": "mine.models:make"}, "mine.models", None),
        ({"engine": "mine.models:make", "model": "x/y"}, "y", "x/y"),
    ],
)
def test_the_service_is_named_after_the_model(
    tmp_path: Path, flags: dict[str, str], service: str, model: str | None
) -> None:
    """The name given, else the last part of the path; always a name that the wire allows."""
    found = settings(tmp_path, None, **flags).settings

    assert (found.service, found.model_to_load) == (service, model)


def test_engine_options_are_pairs(tmp_path: Path) -> None:
    """The value may hold further equal signs."""
    found = settings(tmp_path, None, engine_opt="step_ms=5, note=a=b").settings

    assert found.engine_options == {"step_ms": "5", "note": "a=b"}
    with pytest.raises(ConfigurationError, match="'fast' is not KEY=VALUE"):
        settings(tmp_path, None, engine_opt="fast")


def test_a_worker_without_a_broker_is_refused(tmp_path: Path) -> None:
    """It would wait for ever."""
    with pytest.raises(ConfigurationError, match="at least one endpoint"):
        settings(tmp_path, None, broker="")


def test_weights_in_few_bits_are_for_the_engine_that_makes_them(tmp_path: Path) -> None:
    """Another one would run the model as it is, and nobody would notice."""
    assert settings(tmp_path, None, quantize="int8").settings.quantize == "int8"
    with pytest.raises(ConfigurationError, match="generate makes weights of int8; mock has options of"):
        settings(tmp_path, None, quantize="int8", engine="mock")
