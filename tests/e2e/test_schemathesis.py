"""What /openapi.json promises is what the bridge does: thousands of made-up requests against an idle mock fleet."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
from hypothesis import HealthCheck

from support.examples import examples
from support.http import answer_of
from support.lazily import lazily
from support.stack import Process, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
schemathesis = lazily("schemathesis")
EXAMPLES = 150
DOCUMENT: Final[dict[str, Any]] = json.loads(
    (Path(__file__).resolve().parents[2] / "bridge_http" / "static" / "openapi.json").read_text(encoding="utf-8")
)
OPERATIONS: Final = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]


@pytest.fixture(scope="module")
def bridge() -> Generator[Process]:
    """A fleet that answers at once, whatever it is asked."""
    with running(worker=("--engine-opt", "step_ms=0", "--max-model-len", "300")) as stack:
        yield stack.bridge()


def checks() -> list[Any]:
    """Return what each answer is held to."""
    general: Any = importlib.import_module("schemathesis.checks")  # its types are not all known
    rules: Any = importlib.import_module("schemathesis.specs.openapi.checks")
    return [
        general.not_a_server_error,
        rules.status_code_conformance,
        rules.content_type_conformance,
        rules.response_schema_conformance,
        rules.response_headers_conformance,
    ]


def play(bridge: Process, described: dict[str, Any], method: str, path: str) -> None:
    """Send right and wrong requests, and compare each answer with the description."""
    operation = schemathesis.openapi.from_dict(described)[path][method.upper()]
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    right, wrong = (operation.as_strategy(generation_mode=mode) for mode in modes)

    wanted = checks()
    careless: Any = HealthCheck

    @hypothesis.seed(20261126)
    @hypothesis.settings(
        max_examples=examples(EXAMPLES),
        deadline=None,
        database=None,
        suppress_health_check=list(careless),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(right | wrong)
    def call(case: Any) -> None:
        case.call_and_validate(base_url=bridge.endpoints["http"], checks=wanted)

    call()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_an_operation_is_as_described(bridge: Process, method: str, path: str) -> None:
    """A status that is listed, with a body of its schema."""
    play(bridge, DOCUMENT, method, path)


def test_a_description_that_is_wrong_is_found(bridge: Process) -> None:
    """A status that is not listed, a field that is not there: else this file would prove nothing."""
    silent = copy.deepcopy(DOCUMENT)
    del silent["paths"]["/infer"]["post"]["responses"]["422"]
    promising = copy.deepcopy(DOCUMENT)
    promising["components"]["schemas"]["FleetHealth"]["required"].append("colour")

    for described, method, path in ((silent, "post", "/infer"), (promising, "get", "/health")):
        with pytest.raises(BaseException, match=r"(?i)undocumented|schema|colour"):
            play(bridge, described, method, path)


def test_the_document_is_served(bridge: Process) -> None:
    """As it was built."""
    assert answer_of(bridge, "GET", "/openapi.json")[1] == DOCUMENT
