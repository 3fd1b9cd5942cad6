"""The judge and the report: each way in which an answer can be bad is seen, counted and fails the run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from chaos.fleet import InjectedFault
from chaos.judge import Judge, JudgedRequest
from chaos.plan import ChaosPlan, FaultKind, PlannedFault
from chaos.report import COUNTED, ChaosReport
from rich.console import Console

RIGHT = [10, 11, 12, 13]
TEXT = "abcd"


def ask(judge: Judge) -> JudgedRequest:
    """Ask for the four right tokens."""
    return judge.ask(RIGHT, TEXT, is_stream=True, now_s=0.0)


PLAN = ChaosPlan(
    seed=1,
    duration_s=60.0,
    faults={},
    streams=1,
    unary=0,
    clients=1,
    timeout_s=30.0,
    max_tokens=48,
    brokers=2,
    nodes=4,
    heartbeat_s=1.0,
    eviction_s=2.0,
    worker_arguments=(),
    least_resumes=5,
    least_fenced=1,
)


def report(judge: Judge, **changes: Any) -> ChaosReport:
    """Build a report around a judge."""
    fields: dict[str, Any] = {
        "plan": PLAN,
        "duration_s": 60.0,
        "judge": judge,
        "injected": [],
        "missed": [],
        "broken": [],
        "was_interrupted": False,
        "counts": dict.fromkeys(COUNTED, 5),
    }
    return ChaosReport(**{**fields, **changes})


def play_right(judge: Judge) -> None:
    """Give the right answer in two chunks."""
    request = ask(judge)
    judge.units(request, 0, RIGHT[:3], 1.0)
    judge.units(request, 3, RIGHT[3:], 1.1)
    judge.end(request, RIGHT, TEXT)


def play_wrong_token(judge: Judge) -> None:
    """Give one that is not right."""
    request = ask(judge)
    judge.units(request, 0, [10, 99], 1.0)
    judge.end(request, RIGHT, TEXT)


def play_gap(judge: Judge) -> None:
    """Leave one out."""
    request = ask(judge)
    judge.units(request, 0, [10], 1.0)
    judge.units(request, 2, [12, 13], 1.0)
    judge.end(request, RIGHT, TEXT)


def play_short(judge: Judge) -> None:
    """End too early."""
    request = ask(judge)
    judge.units(request, 0, RIGHT[:2], 1.0)
    judge.end(request, RIGHT[:2], TEXT)


def play_wrong_text(judge: Judge) -> None:
    """Give the right tokens with another text."""
    judge.end(ask(judge), RIGHT, "abc")


def play_twice(judge: Judge) -> None:
    """Give a token a second time."""
    request = ask(judge)
    judge.units(request, 0, RIGHT[:2], 1.0)
    judge.units(request, 1, RIGHT[1:], 1.0)
    judge.end(request, RIGHT, TEXT)


def play_error(judge: Judge) -> None:
    """End without an answer."""
    judge.fail(ask(judge), "worker_lost", "it is gone")


def play_no_end(judge: Judge) -> None:
    """Never end."""
    ask(judge)
    judge.give_up(9.0)


def test_a_right_answer_is_right() -> None:
    """Nothing to complain about."""
    judge = Judge()

    play_right(judge)

    assert (judge.requests, judge.answered, judge.tokens, judge.open) == (1, 1, 4, {})
    assert report(judge).problems() == []


@pytest.mark.parametrize(
    ("play", "lost", "doubled", "wrong"),
    [
        (play_wrong_token, 0, 0, 1),
        (play_gap, 0, 0, 1),
        (play_short, 0, 0, 1),
        (play_wrong_text, 0, 0, 1),
        (play_twice, 0, 1, 0),
        (play_error, 1, 0, 0),
        (play_no_end, 1, 0, 0),
    ],
)
def test_what_is_bad_is_counted_and_fails_the_run(
    play: Callable[[Judge], None], lost: int, doubled: int, wrong: int
) -> None:
    """Each once, with a sentence that says what it was."""
    judge = Judge()

    play(judge)

    assert (judge.lost, judge.doubled, judge.wrong) == (lost, doubled, wrong)
    assert len(report(judge).problems()) == 1
    assert judge.complaints
    assert judge.complaints[0].startswith("request 1: ")


def test_a_run_that_proved_nothing_fails() -> None:
    """Too few resumes or fenced results, faults without a victim, a process that died by itself, no request at all."""
    judge = Judge()
    play_right(judge)
    few: dict[str, int] = dict.fromkeys(COUNTED, 0)

    assert len(report(judge, counts=few).problems()) == 2
    assert len(report(judge, missed=[PlannedFault(1.0, FaultKind.WORKER_KILL)]).problems()) == 1
    assert report(judge, broken=["node-1 ended by itself: signal 11"]).problems() == [
        "node-1 ended by itself: signal 11"
    ]
    assert report(Judge()).problems() == ["nothing was asked"]


def test_each_fault_that_cuts_streams_off_must_show_in_the_resumes() -> None:
    """Unless another number is demanded; after an interrupt nothing is."""
    judge = Judge()
    play_right(judge)
    kills = [InjectedFault(at_s, PlannedFault(at_s, FaultKind.WORKER_KILL), "node-0", 3) for at_s in (1.0, 2.0)]
    for _ in kills:
        judge.note_fault(1.0)
    shown = {"injected": kills, "counts": dict.fromkeys(COUNTED, 1)}
    plan = dataclasses.replace(PLAN, least_resumes=None, least_fenced=0)

    assert report(judge, plan=plan, **shown).problems() == ["only 1 resumes, 2 are the least that proves anything"]
    assert report(judge, plan=plan, was_interrupted=True, **shown).problems() == []


def test_a_request_that_is_forgotten_is_found() -> None:
    """Neither answered nor failed: the load itself went wrong."""
    judge = Judge()
    play_right(judge)
    ask(judge)

    assert report(judge).problems() == ["1 requests have neither an answer nor an error"]


def test_a_gap_is_put_down_to_the_fault_that_it_began_with() -> None:
    """Tokens on their way still come in after the blow; a gap that covers a later fault is not that one's."""
    judge = Judge()
    request = ask(judge)
    judge.units(request, 0, RIGHT[:1], 0.5)
    judge.units(request, 1, RIGHT[1:2], 0.9)  # before any fault
    judge.note_fault(1.0)
    judge.units(request, 2, RIGHT[2:3], 1.1)
    judge.note_fault(2.5)
    judge.units(request, 3, RIGHT[3:], 3.1)

    assert judge.gaps_s == pytest.approx([2.0, 0.0])
    assert judge.longest_gap_s == pytest.approx(2.0)


def test_a_report_is_a_table_for_people_and_a_record_for_programs() -> None:
    """Both tell the verdict and what was done."""
    judge = Judge()
    play_error(judge)
    judge.note_fault(1.0)
    shown = report(judge, injected=[InjectedFault(1.0, PlannedFault(1.0, FaultKind.WORKER_FREEZE, 2.4), "node-3", 41)])
    output = StringIO()

    Console(file=output, width=100).print(shown.render())
    record = json.loads(json.dumps(shown.to_dict()))

    for words in ("worker-freeze", "41", "FAILED: 1 requests lost (1 worker_lost)", "timers in force"):
        assert words in output.getvalue()
    assert record["faults"] == [
        {"at_s": 1.0, "kind": "worker-freeze", "victim": "node-3", "open": 41, "lasts_s": 2.4, "longest_gap_s": 0.0}
    ]
    assert record["lost"] == 1
