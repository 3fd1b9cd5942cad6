"""Requests whose engine dies: on the other device, or back to the broker."""

import pytest

from support.node import (
    Node,
    body,
    ids_of,
    rid,
    sent,
    serving,
    submitted,
)
from zmqrt.protocol import messages as m
from zmqrt.protocol.limits import MAX_TEXT_CHARS
from zmqrt.protocol.tasks import GenerateChunk
from zmqrt.worker.core import WorkerState
from zmqrt.worker.device_pool import DevicePool
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import Capacity, TokenEvent

EOS = 257


def test_requests_of_a_dead_engine_run_on_the_other_device_from_where_they_were() -> None:
    """No unit is lost, none is sent twice, and only the dead device restarts."""
    node = serving(devices=2, slots=2)
    node.dispatch(1)
    node.step(TokenEvent(ticket=node.ticket(), token_ids=ids_of("ab")))

    made = node.kill(0)
    more = node.step(TokenEvent(ticket=node.ticket(), token_ids=ids_of("c")), device=1)

    (submit,) = submitted(made, "mock:1")
    assert isinstance(submit, ipc.Submit)
    assert submit.request.resume_ids[:2] == ids_of("ab")
    assert sent(made, m.WorkerError) == []
    assert [(one.seq, one.n) for one in sent(more, m.WorkerPartial)] == [(2, 1)]
    (beat,) = sent(made, m.Heartbeat)
    assert [(one.id, one.phase, one.restarts) for one in beat.devices] == [
        ("mock:0", "restarting", 1),
        ("mock:1", "ready", 0),
    ]
    node.check()


@pytest.mark.parametrize(
    ("keyed", "temperature", "resumes", "resumed"),
    [
        (False, 0.8, True, "lossless"),
        (False, 0.8, False, None),
        (False, 0.0, True, None),
        (True, 0.8, True, None),
    ],
)
def test_a_sampled_answer_that_goes_on_with_other_noise_says_so(
    *, keyed: bool, temperature: float, resumes: bool, resumed: str | None
) -> None:
    """At its end. One that is greedy, began here, or has noise by positions is what it would have been anyway."""
    node = Node()
    node.register()
    node.load(has_keyed_noise=keyed)
    prefix = [GenerateChunk(ids=ids_of("ab"), text=["a", "b"])] if resumes else []
    node.dispatch(1, payload=body(temperature=temperature), prefix=prefix)
    made = node.step(TokenEvent(ticket=node.ticket(), token_ids=ids_of("c"), finish_reason="length"))

    (final,) = sent(made, m.WorkerFinal)
    assert final.meta.get("resumed") == resumed


def test_without_another_device_requests_go_back_to_the_broker() -> None:
    """503, for another node; what comes meanwhile finds no slot, and the limit rises when the engine is back."""
    node = serving()
    node.dispatch(1)

    made = node.kill(0)
    meanwhile = node.dispatch(2)
    back = node.load(0)

    (error,) = sent(made, m.WorkerError)
    assert (error.code, error.reason, error.retryable, error.ext) == (503, "engine_restarted", True, {"crashes": 1})
    assert sent(meanwhile, m.WorkerError)[0].code == 429
    assert sent(back, m.Heartbeat)[0].dispatch_limit == 4
    assert node.core.state is WorkerState.READY


def test_a_request_that_sees_two_engines_die_goes_back_to_the_broker() -> None:
    """It may be the cause; a third engine is the broker's to risk."""
    node = serving(devices=3)
    node.dispatch(1)
    first = node.core.requests.jobs[0, "u", rid(1)].device

    node.core.engine_exited(first, "killed", is_restarted=True, now=node.now)
    second = node.core.requests.jobs[0, "u", rid(1)].device
    node.core.engine_exited(second, "killed", is_restarted=True, now=node.now)

    (error,) = sent(node.done(), m.WorkerError)
    assert (error.code, error.ext) == (503, {"crashes": 2})


def test_a_request_that_ran_well_on_a_dying_engine_is_no_suspect() -> None:
    """It made units there, so it is not what the engine died of; the one beside it made none."""
    node = serving()
    node.dispatch(1)
    node.dispatch(2)
    node.step(TokenEvent(ticket=node.ticket(1), token_ids=ids_of("a")))

    made = node.kill(0)

    assert {one.lease: one.ext for one in sent(made, m.WorkerError)} == {1: {"crashes": 0}, 2: {"crashes": 1}}


def test_a_request_that_was_lost_before_risks_one_engine_here() -> None:
    """What else died of it the broker knows alone."""
    node = serving(devices=2)
    node.dispatch(1, attempt=2)
    device = node.core.requests.jobs[0, "u", rid(1)].device

    node.core.engine_exited(device, "killed", is_restarted=True, now=node.now)

    (error,) = sent(node.done(), m.WorkerError)
    assert (error.code, error.ext) == (503, {"crashes": 1})


def test_a_request_that_must_not_run_twice_is_never_run_again_here() -> None:
    """IDEMPOTENT off: the client decides."""
    node = serving(devices=2)
    node.dispatch(1, flags=m.STREAM)

    made = node.kill(0)

    assert submitted(made) == []
    assert sent(made, m.WorkerError)[0].code == 503


def test_waiting_requests_go_back_when_the_last_engine_dies() -> None:
    """They are not left to wait for a restart that may never come. What no engine has had loses no attempt by that."""
    node = serving(slots=1, batch=2)
    node.dispatch(1)
    node.dispatch(2)

    made = node.kill(0)

    errors = sent(made, m.WorkerError)
    assert [(one.lease, one.reason) for one in errors] == [(1, "engine_restarted"), (2, "no_slot")]
    assert node.core.requests.jobs == {}


def test_a_bar_that_is_drawn_after_loading_takes_no_device_out_of_service() -> None:
    """VLLM's processes draw them whenever they do something that takes long."""
    node = serving()
    made = node.engine(ipc.EngineLoading("warming", 50.0, 1.0)) + node.dispatch(1)

    assert sent(made, m.WorkerError) == []
    assert len(submitted(made)) == 1


def test_brokers_hear_why_a_device_stands_in_for_another() -> None:
    """From the first heartbeat on, whichever engine it runs."""
    infos = [m.DeviceInfo("cpu", "cpu", "a CPU", 0)]
    pool = DevicePool(infos, served="m", batch_max_size=8, context=0, fallbacks={"cpu": "the driver lists no GPU"})

    assert pool.devices["cpu"].report(0.0).fallback == "the driver lists no GPU"


def test_brokers_hear_what_an_engine_has_to_do_without() -> None:
    """As long as that engine serves; the next one may have all."""
    node = serving()
    service = ipc.EngineService(
        name="",
        kind="token",
        task="generate",
        capacity=Capacity(slots=4, context=100),
        model="toy",
        revision="r1",
        fallback="no graphs: " + "x" * 1000,
    )
    node.kill()
    node.now += 0.25
    (fallen,) = sent(node.engine(ipc.EngineReady([service])), m.Heartbeat)
    (dead,) = sent(node.kill(), m.Heartbeat)

    assert fallen.devices[0].fallback.startswith("no graphs: x")
    assert len(fallen.devices[0].fallback) == MAX_TEXT_CHARS
    assert dead.devices[0].fallback == ""
