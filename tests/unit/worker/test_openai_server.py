"""What an openai engine makes of its options and of what a server says of itself."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from support.engine_fleet import spec
from zmqrt.worker.engines.base import CannotLoadError
from zmqrt.worker.engines.openai_server import Asked, OpenAIOptions, ServerChild, read_options, served_models, wait_for

HERE = OpenAIOptions(url="http://h:1/v1")
LLAMA = {"total_slots": 4, "default_generation_settings": {"n_ctx": 7}}


class Told:
    """A server that answers what it is told to, by the end of the path."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def get(self, url: str) -> Asked:
        """Answer."""
        name = url.rpartition("/")[2]
        return Asked(status=200, body=self.answers[name]) if name in self.answers else Asked(status=404)

    def is_there(self, url: str) -> bool:
        """Say whether there are completions."""
        return True


def listing(*rows: dict[str, Any]) -> Asked:
    """List models."""
    return Asked(status=200, body={"object": "list", "data": list(rows)})


def test_an_address_may_leave_out_what_is_always_the_same() -> None:
    """Of a server of one's own even all of it; a port that is asked for stands wherever it is named."""
    assert read_options(spec(url="http://h:1")).url == "http://h:1/v1"
    assert read_options(spec(url="http://h:1/v1/")).url == "http://h:1/v1"
    assert read_options(spec(url="https://h/openai/v1")).root == "https://h/openai"
    own = read_options(spec(command="serve --port {port} 'a b'"))
    assert own.command == ("serve", "--port", own.url.removesuffix("/v1").rpartition(":")[2], "a b")
    assert (own.is_here, HERE.is_here) == (True, False)


def test_a_key_comes_from_a_variable_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Never from the option itself, which everybody sees who lists processes."""
    monkeypatch.setenv("A_KEY", "k1")
    (tmp_path / "key").write_text("k2\n")
    assert read_options(spec(url="http://h", key_env="A_KEY")).headers == {"authorization": "Bearer k1"}
    assert read_options(spec(url="http://h", key_file=str(tmp_path / "key"))).headers == {"authorization": "Bearer k2"}
    assert read_options(spec(url="http://h")).headers == {}


@pytest.mark.parametrize(
    ("row", "answers", "context", "slots"),
    [
        ({"max_model_len": 512}, {}, 512, 64),
        ({"context_length": 4096}, {}, 4096, 64),
        (
            {"meta": {"n_ctx_train": 9}},
            {"props": {"total_slots": 4, "default_generation_settings": {"n_ctx": 7}}},
            7,
            4,
        ),
        ({}, {"info": {"max_total_tokens": 99, "max_concurrent_requests": 128}}, 99, 128),
        ({"max_model_len": "long"}, {"props": [], "info": {"max_concurrent_requests": -1}}, 0, 64),
    ],
)
def test_context_and_places_are_where_each_server_tells_them(
    row: dict[str, Any], answers: dict[str, Any], context: int, slots: int
) -> None:
    """vLLM, routers, llama.cpp (what it runs with, not what the model was made for), TGI; nonsense is nothing said."""
    (model,) = served_models(listing({"id": "m", **row}), "", HERE, Told(**answers))
    assert (model.context, model.slots) == (context, slots)

    options = msgspec.structs.replace(HERE, context=5, slots=3)
    (model,) = served_models(listing({"id": "m", **row}), "", options, Told(**answers))
    assert (model.context, model.slots) == (5, 3)


def test_how_a_chat_is_gone_on_with_follows_from_whose_server_it_is() -> None:
    """Unless an operator knows better."""

    def continuation(owner: str, resume: str = "") -> str:
        options = msgspec.structs.replace(HERE, resume=resume)
        (model,) = served_models(listing({"id": "m", "owned_by": owner}), "", options, Told())
        return model.dialect.continuation if model.dialect.resumes else "no"

    assert [continuation(owner) for owner in ("vllm", "llamacpp", "me")] == [
        *("continue_final_message", "apply_template", "")
    ]
    assert continuation("me", "continue_final_message") == "continue_final_message"
    assert (continuation("vllm", "completions"), continuation("vllm", "no")) == ("", "no")


def test_all_models_are_served_or_the_one_that_is_named() -> None:
    """One that is not listed may be loaded when it is asked for; of a hundred somebody has to choose."""
    rows = [{"id": f"m{number}"} for number in range(17)]
    assert [one.dialect.model for one in served_models(listing(*rows[:3]), "", HERE, Told())] == ["m0", "m1", "m2"]
    assert [one.dialect.model for one in served_models(listing(*rows), "m9", HERE, Told())] == ["m9"]
    assert [one.dialect.model for one in served_models(Asked(status=404), "other", HERE, Told())] == ["other"]
    for listed in (listing(*rows), listing(), Asked(status=404), listing({"id": 5})):
        with pytest.raises(CannotLoadError, match="--model"):
            served_models(listed, "", HERE, Told())


def test_a_server_is_waited_for_but_not_with_a_key_that_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor if it was ours and has ended."""
    monkeypatch.setattr("zmqrt.worker.engines.openai_server._LOOK_EVERY_S", 0.0)
    answers = [Asked(words="refused"), Asked(status=503), Asked(status=200, body={})]
    assert wait_for(HERE, lambda _url: answers.pop(0), str).status == 200
    with pytest.raises(CannotLoadError, match="key_env"):
        wait_for(HERE, lambda _url: Asked(status=401), str)
    with pytest.raises(RuntimeError, match="has ended"):
        wait_for(HERE, lambda _url: Asked(words="refused"), lambda: "it has ended")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "url=http"),
        ({"url": "localhost:8000"}, "url=http"),
        ({"url": "http://["}, "url=http"),
        ({"url": "http://h:99999"}, "url=http"),
        ({"url": "http://me:secret@h"}, "key_env"),
        ({"url": "http://h/v1?key=secret"}, "key_env"),
        ({"url": "http://h", "speed": "9"}, "speed"),
        ({"url": "http://h", "slots": "many"}, "slots"),
        ({"url": "http://h", "resume": "yes"}, "resume"),
        ({"url": "http://h", "key_env": "NOT_THERE"}, "no such variable"),
        ({"url": "http://h", "key_file": "/not/there"}, "key_file"),
        ({"command": "serve 'a {port}"}, "command"),
    ],
)
def test_what_cannot_work_is_said(options: dict[str, str], words: str) -> None:
    """The option is named."""
    with pytest.raises(CannotLoadError, match=words):
        read_options(spec(**options))


def test_a_command_that_is_not_there_is_said() -> None:
    """It is not tried again either."""
    with pytest.raises(CannotLoadError, match="not/a/program"):
        ServerChild(("/not/a/program",))
