"""The page as a reader sees it: a real browser, bridge, broker and workers."""

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

from support.browser import Page, browsing, needs_browser
from support.stack import Process, Stack, eventually, running, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), needs_browser]
STEADY = ("--engine-opt", "step_ms=50,eos=never")
STATIC: Final = Path(__file__).resolve().parents[2] / "bridge_http" / "static"
ENTER: Final = ("Enter", 13)
SHIFT: Final = 8


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Generator[Page]:
    """One browser for all tests."""
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page) -> Page:
    """A wide window on a light system, with nothing to complain about yet."""
    browser.open("about:blank?")
    browser.look(width=1280, height=900)
    browser.complaints.clear()
    return browser


@pytest.fixture(scope="module")
def fleet() -> Generator[tuple[Stack, Process]]:
    """Two nodes that take 50 ms a token, and a bridge to them."""
    with running(nodes=2, worker=STEADY) as stack:
        yield stack, stack.bridge()


CALLED: Final = (
    '<think>Where?</think>One moment.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Generator[Process]:
    """A bridge to a node that thinks and calls a tool, then speaks."""
    script = tmp_path_factory.mktemp("script") / "script.json"
    script.write_text(json.dumps([CALLED, "No rain in Zürich."]))
    with running(worker=("--engine-opt", f"script={script}")) as stack:
        yield stack.bridge()


def read(page: Page, bridge: Process, *, state: str = "ready") -> None:
    """Open the page and wait until it says that state."""
    page.open(bridge.endpoints["http"] + "/")
    eventually(lambda: page.text("#state") == state, what=state)


def health(page: Page) -> dict[str, str]:
    """Return what the page says of each node."""
    script = """Object.fromEntries([...document.querySelectorAll("#nodes > li")].map((node) =>
        ['name', 'health'].map((part) => node.querySelector(`[data-is=${part}]`).textContent)))"""
    return {str(name): str(said) for name, said in page.value(script).items()}


def say(page: Page, text: str, *, max_tokens: int) -> None:
    """Type a message and press Enter."""
    page.value(f"document.querySelector('#max-tokens').value = {max_tokens}; document.querySelector('#text').focus()")
    page.type(text)
    page.press(*ENTER)


def said(page: Page) -> str:
    """Return the newest answer as far as it is there."""
    return str(page.value("[...document.querySelectorAll('.turn.assistant .said')].at(-1)?.textContent ?? ''"))


def note(page: Page) -> str:
    """Return what stands below the newest answer; "" while it is being made."""
    script = "[...document.querySelectorAll('.turn.assistant:not(.running) [data-is=note]')].at(-1)?.textContent ?? ''"
    return str(page.value(script))


def test_nodes_come_and_go_before_the_readers_eyes(page: Page, fleet: tuple[Stack, Process]) -> None:
    """A new one is there as soon as it says so; a killed one does not vanish without a word."""
    stack, bridge = fleet
    read(page, bridge)

    assert health(page) == {"node-0": "active", "node-1": "active"}
    worker = stack.worker(*STEADY, node_id="late")
    eventually(lambda: health(page).get("late") == "active", what="the new node")
    assert page.text("#totals [data-is=nodes]") in ("2 of 3", "3")
    worker.kill()
    eventually(lambda: health(page)["late"] in ("suspect", "lost", "evicted", "gone"), within_s=10, what="its loss")
    eventually(lambda: page.text("#totals [data-is=nodes]") == "2", what="the rest")
    assert health(page)["node-0"] == "active"
    assert page.complaints == []


def test_a_node_that_loads_says_how_far_it_is(page: Page) -> None:
    """Phase and percent of each device; ready afterwards, and its model can be chosen."""
    with Stack() as stack:
        stack.broker()
        bridge = stack.bridge()
        read(page, bridge, state="not ready")
        assert page.text("#no-nodes").startswith("No node has joined yet")
        words = ("--broker", stack.workers, "--engine", "mock", "--engine-opt", "load_s=3")
        stack.processes.append(start("worker", *words, wait=False))

        phase = eventually(lambda: re.fullmatch(r"loading (\d+) %, .* s", page.text("[data-is=phase]")), what="percent")
        assert 0 <= int(phase[1]) <= 100
        eventually(lambda: page.text("[data-is=phase]") == "ready", what="ready")  # the other one may be so before
        assert page.text("#state") == "ready"
        assert page.value("[...document.querySelector('#model').options].map((one) => one.value)") == ["mock"]
        assert page.complaints == []


def test_a_lost_broker_is_named_and_found_again(page: Page) -> None:
    """What was known last stays, marked as old."""
    with running(worker=STEADY) as stack:
        bridge = stack.bridge()
        read(page, bridge)
        broker = stack.processes[0]
        broker.kill()
        eventually(lambda: page.text("#state") == "broker unreachable", what="the news")

        assert page.text("#problem")
        assert page.value("document.querySelector('#fleet').classList.contains('stale')") is True
        assert list(health(page)) == ["node-0"]
        stack.again(broker)
        eventually(lambda: page.text("#state") == "ready" and not page.value("!problem.hidden"), what="ready again")
        assert all("503" in complaint for complaint in page.complaints)


def test_nobody_asks_while_nobody_looks(page: Page, fleet: tuple[Stack, Process]) -> None:
    """And the news is there at once when somebody does again."""
    read(page, fleet[1])
    page.value("""Object.defineProperty(document, "hidden", { get: () => window.isHidden, configurable: true })""")
    page.value("window.isHidden = true; document.dispatchEvent(new Event('visibilitychange'))")
    asked = "performance.getEntriesByType('resource').filter((one) => one.name.endsWith('/status')).length"
    script = f"new Promise((done) => setTimeout(() => done({asked}), 1500)).then((one) => [one, {asked}])"
    settled = page.value(script)[0]  # one may have been under way

    assert page.value(f"new Promise((done) => setTimeout(() => done({asked}), 2500))") == settled
    page.value("window.isHidden = false; document.dispatchEvent(new Event('visibilitychange'))")
    eventually(lambda: int(page.value(asked)) > settled, what="a question")
    assert page.complaints == []


def test_an_answer_is_read_as_it_is_made(page: Page, fleet: tuple[Stack, Process]) -> None:
    """The text grows before it ends; then what was measured stands below, and the next question knows of it."""
    read(page, fleet[1])
    say(page, "hello", max_tokens=40)
    begun = eventually(lambda: len(said(page)), what="a piece")
    grown = eventually(lambda: len(said(page)) > begun and page.value("!!document.querySelector('.turn.running')"))

    assert grown
    measured = eventually(lambda: note(page), what="the end")
    assert re.search(r"first token \d+ ms · [\d.]+ ms per token · 40 tokens", measured)
    assert "cut off at max tokens" in measured
    say(page, "and then?", max_tokens=1)
    eventually(lambda: page.value("document.querySelectorAll('.turn:not(.running)').length") == 4, what="the answer")
    assert page.complaints == []


@pytest.mark.parametrize("way", ["button", "key"])
def test_stop_frees_the_slot(page: Page, fleet: tuple[Stack, Process], way: str) -> None:
    """Nobody computes for a reader who has had enough; what was said stays."""
    read(page, fleet[1])
    with fleet[0].client() as client:
        say(page, "hello", max_tokens=5000)
        eventually(lambda: said(page) and client.status().running == 1, what="a running answer")
        if way == "button":
            page.click("#stop")
        else:
            page.press("Escape", 27)
        eventually(lambda: client.status().running == 0, within_s=10, what="a free slot")

    assert eventually(lambda: note(page), what="the end").startswith("stopped")
    assert said(page)
    assert page.value("document.activeElement.id") == "text"
    assert page.complaints == []


def test_a_refusal_is_told_and_the_question_kept(page: Page, fleet: tuple[Stack, Process]) -> None:
    """In the words of the fleet; it can be sent again."""
    read(page, fleet[1])
    page.value(
        "model.append(new Option('nobody-serves-this', 'nobody-serves-this')); model.value = 'nobody-serves-this'"
    )
    say(page, "hello", max_tokens=1)

    assert "nobody-serves-this" in eventually(lambda: note(page), what="the refusal")
    assert page.value("document.querySelector('#text').value") == "hello"
    assert page.value("document.querySelector('.turn.failed') !== null") is True


def call_weather(page: Page, bridge: Process) -> None:
    """Give the model the tool of the example, and let it call that."""
    read(page, bridge)
    page.click("#more-title")
    page.click("#example")
    say(page, "Rain?", max_tokens=500)
    eventually(lambda: note(page), what="the end")


def test_thoughts_words_and_calls_stand_apart_and_what_a_tool_returned_goes_back(page: Page, calling: Process) -> None:
    """The model goes on with it, and nowhere is markup."""
    call_weather(page, calling)

    assert page.text(".turn.assistant [data-is=thought]") == "Where?"
    assert said(page).strip() == "One moment."
    assert page.text(".call [data-is=name]") == "weather"
    assert json.loads(page.text(".call [data-is=arguments]")) == {"city": "Zürich"}
    page.value("document.querySelector('.call textarea').focus()")
    page.type("dry")
    page.click(".turn.assistant [data-is=return]")
    eventually(lambda: said(page) == "No rain in Zürich.", what="the answer")
    assert page.value("document.querySelector('.call textarea').readOnly") is True
    assert page.value("[...document.querySelectorAll('[data-is=return]')].every((one) => one.hidden)") is True
    assert "<" not in str(page.value("document.querySelector('#log').innerText"))
    assert page.complaints == []


def test_an_answer_keeps_to_a_schema(page: Page, calling: Process) -> None:
    """Whatever the model would say."""
    read(page, calling)
    page.value("document.querySelector('#schema').value = '{\"enum\": [\"dry\"]}'")
    say(page, "Rain?", max_tokens=50)
    eventually(lambda: note(page), what="the end")

    assert said(page) == '"dry"'


def test_a_field_that_is_no_json_is_named_and_nothing_sent(page: Page, calling: Process) -> None:
    """The message stays where it is."""
    read(page, calling)
    page.value("document.querySelector('#tools').value = '[{'")
    say(page, "Rain?", max_tokens=50)

    assert page.text("#more-problem").startswith("Tools: ")
    assert page.value("[document.activeElement.id, document.querySelector('#text').value]") == ["tools", "Rain?"]
    assert page.value("document.querySelectorAll('.turn').length") == 0
    page.value("document.querySelector('#tools').value = ''; document.querySelector('#chat').requestSubmit()")
    eventually(lambda: note(page), what="the end")
    assert page.value("document.querySelector('#more-problem').hidden") is True


def test_words_are_never_html(page: Page, fleet: tuple[Stack, Process]) -> None:
    """Neither a reader's nor a model's: all goes in as text, and the policy stands behind that."""
    script = (STATIC / "page.js").read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser", script
    )

    read(page, fleet[1])
    say(page, "<img src=x onerror='window.broken = 1'><b>bold</b>", max_tokens=1)
    eventually(lambda: page.text(".turn.user .said").startswith("<img"), what="the words")
    assert page.value("document.querySelectorAll('#log img, #log b').length") == 0
    assert page.value("window.broken ?? null") is None


def test_enter_sends_and_shift_enter_breaks_the_line(page: Page, fleet: tuple[Stack, Process]) -> None:
    """An empty message is not sent."""
    read(page, fleet[1])
    page.value("document.querySelector('#text').focus()")
    page.press(*ENTER)
    assert page.text(".turn") == ""
    page.type("one")
    page.press(*ENTER, modifiers=SHIFT)
    page.type("two")
    assert page.value("document.querySelector('#text').value") == "one\ntwo"
    page.press(*ENTER)
    assert page.text(".turn.user .said") == "one\ntwo"


def test_the_key_is_asked_for_once_and_kept_in_the_tab(page: Page) -> None:
    """Not in the address, not beyond the tab; a wrong one is asked for again."""
    with running(worker=STEADY) as stack:
        bridge = stack.bridge("--api-keys", "acme:s3cret")
        read(page, bridge, state="key needed")
        assert page.value("document.querySelector('#ask-key').open") is True
        assert page.value("document.activeElement.id") == "key-text"
        assert health(page) == {}
        page.type("wrong")
        page.press(*ENTER)
        eventually(lambda: "did not accept" in page.text("#key-why"), what="a second chance")
        page.type("s3cret")
        page.press(*ENTER)
        eventually(lambda: page.text("#state") == "ready", what="ready")
        assert health(page) == {"node-0": "active"}
        assert page.value("location.search + location.hash + document.cookie + localStorage.length") == "0"
        read(page, bridge)  # a reload asks nobody
        assert page.value("document.querySelector('#ask-key').open") is False
        assert all("401" in complaint for complaint in page.complaints)
        assert len(page.complaints) == 2


def test_the_theme_follows_the_system_until_one_is_chosen(page: Page, fleet: tuple[Stack, Process]) -> None:
    """And the choice outlives a reload."""
    back = "getComputedStyle(document.body).backgroundColor"
    read(page, fleet[1])
    light = page.value(back)
    page.look(width=1280, height=900, theme="dark")
    dark = page.value(back)

    assert light != dark
    page.click("#theme")
    assert page.value(back) == light
    read(page, fleet[1])
    assert page.value(back) == light
    page.value("localStorage.clear()")


CONTRASTS: Final = """
(() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = color; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => rgba(color).slice(0, 3).map((one) => one / 255)
    .map((one) => one <= .04045 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4)
    .reduce((sum, one, at) => sum + one * [.2126, .7152, .0722][at], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
  };
  return [...document.querySelectorAll("body *")]
    .filter((one) => one.checkVisibility() && !one.disabled)
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((one) => {
      const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
      return [one.textContent.trim(), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
    });
})()
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_read_and_used_on_a_phone(page: Page, fleet: tuple[Stack, Process], theme: str) -> None:
    """At 360 px nothing stands out to the side; every text has the contrast of WCAG AA, and every control a name."""
    page.look(width=360, height=740, theme=theme)
    read(page, fleet[1])
    say(page, "hello", max_tokens=1)
    eventually(lambda: note(page), what="the end")
    check_readable(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_calls_can_be_read_and_answered_on_a_phone(page: Page, calling: Process, theme: str) -> None:
    """The same, with all fields open."""
    page.look(width=360, height=740, theme=theme)
    call_weather(page, calling)

    check_readable(page)


def check_readable(page: Page) -> None:
    """Look at a narrow page: how wide it is, how its texts stand out, what its controls are called."""
    contrasts = page.value(CONTRASTS)
    nodes = page.command("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "textbox", "spinbutton", "combobox", "meter", "progressbar")
    controls = [one for one in nodes if one.get("role", {}).get("value") in roles]

    assert page.value("document.documentElement.scrollWidth") <= 360
    assert len(contrasts) > 40
    assert [pair for pair in contrasts if pair[1] < 4.5] == []
    assert len(controls) > 7
    assert [one for one in controls if not one.get("name", {}).get("value")] == []


def test_the_keyboard_reaches_everything_in_order(page: Page, fleet: tuple[Stack, Process]) -> None:
    """First the way past the fleet; and what has the focus shows it."""
    read(page, fleet[1])
    reached: list[str] = []
    for _ in range(10):
        page.press("Tab", 9)
        reached.append(str(page.value("document.activeElement.id || document.activeElement.className")))
        assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"

    settings = ["model", "max-tokens", "temperature", "more-title"]
    assert reached == ["skip", "theme", "clear", "log", *settings, "text", "send"]
