"""What operators are given asks for numbers that exist, in a way that gives an answer.

A name that is misspelt in an alert makes no error anywhere: the alert is silent for ever. So every expression is taken
apart here and held against docs/metrics.md. This is no PromQL parser; it knows the few forms that deploy/ uses, and
`promtool check rules` knows the rest.
"""

import configparser
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from zmqrt.client.cli.main import COMMANDS
from zmqrt.protocol.errors import ErrorKind

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted(path.name for path in (DEPLOY / "systemd").iterdir())

OF_COUNTERS = {"rate", "increase"}
OF_GAUGES = {"max_over_time", "deriv"}
AGGREGATORS = {"sum", "max", "min"}
OTHERS = {"", "absent", "histogram_quantile", "scalar", "vector"}
TARGET = {"instance", "job"}
"""Labels that Prometheus itself gives to every series."""
TOKEN = re.compile(
    r"(?P<call>[a-z_]*)(?: by \((?P<by>[\w, ]+)\) )?\("
    r"|(?P<close>\))"
    r"|(?P<name>\bzmqrt_\w+)(?:\{(?P<matchers>[^}]*)\})?(?P<range>\[[\w$]+\])?"
)


# --- the documentation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """What docs/metrics.md says of a name."""

    kind: str
    labels: frozenset[str]


def documented() -> dict[str, Metric]:
    """Read the tables, and the one name that stands in a list."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows: list[tuple[str, str, str]] = re.findall(r"^\| `(zmqrt_\w+)` \| (\w+) \| ([\w, ]*)\|", text, re.MULTILINE)
    rows += re.findall(r"^\* `(zmqrt_\w+)` \((\w+), by (\w+)\)", text, re.MULTILINE)
    return {name: Metric(kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in rows}


METRICS = documented()


# --- expressions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A function or an aggregator around a series; `by` is None where there is no such clause."""

    name: str
    by: frozenset[str] | None


@dataclass(frozen=True)
class Use:
    """A series in an expression: its name, what it is matched by, and what stands around it, the outermost first."""

    name: str
    matched: dict[str, str]
    has_range: bool
    around: tuple[Call, ...]

    @property
    def base(self) -> str:
        """The name in the documentation: a histogram has three kinds of series."""
        return self.name if self.name in METRICS else re.sub(r"_(bucket|sum|count)$", "", self.name)

    @property
    def kind(self) -> str:
        """Counter or gauge; the series of a histogram are counters."""
        kind = METRICS[self.base].kind
        return "counter" if kind == "histogram" else kind

    @property
    def labels(self) -> frozenset[str]:
        """The labels that it has."""
        of_bucket = {"le"} if self.name == f"{self.base}_bucket" else set[str]()
        return METRICS[self.base].labels | of_bucket | TARGET

    @property
    def aggregators(self) -> list[Call]:
        """Those around it, the outermost first."""
        return [call for call in self.around if call.name in AGGREGATORS]


def uses(expression: str) -> Iterator[Use]:
    """Yield every series of zmqrt in an expression, and assert that its brackets match."""
    around: list[Call] = []
    for token in TOKEN.finditer(expression):
        if token["name"]:
            matched = dict(re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', token["matchers"] or ""))
            yield Use(token["name"], matched, token["range"] is not None, tuple(around))
        elif token["close"]:
            assert around, f"a bracket too many in {expression}"
            around.pop()
        else:
            by = token["by"]
            around.append(Call(token["call"], frozenset(re.findall(r"\w+", by)) if by else None))
            assert around[-1].name in OF_COUNTERS | OF_GAUGES | AGGREGATORS | OTHERS, f"unknown here: {token[0]}"
    assert not around, f"a bracket is missing in {expression}"


def alerts() -> list[dict[str, Any]]:
    """Return all rules."""
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    told: dict[str, Any] = json.loads((DEPLOY / "grafana" / "zmqrt.json").read_text(encoding="utf-8"))
    return told


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the queries of the dashboard, each with the title of its panel."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target


EXPRESSIONS = [
    *((rule["alert"], rule["expr"]) for rule in alerts()),
    *((title, target["expr"]) for title, target in targets()),
]
USES = [(where, use) for where, expression in EXPRESSIONS for use in uses(expression)]


def test_every_series_is_documented() -> None:
    """A histogram by its three series, all others by their own name."""
    assert len(METRICS) > 40
    assert len(USES) > 80
    for where, use in USES:
        assert use.base in METRICS, f"{where}: {use.name}"
        assert (METRICS[use.base].kind == "histogram") == (use.base != use.name), f"{where}: {use.name}"


def test_the_page_for_operators_and_the_scrapes_name_what_exists() -> None:
    """A name that ends in a star stands for several."""
    for path in (DEPLOY / "README.md", DEPLOY / "prometheus" / "prometheus.yml"):
        named = re.findall(r"\bzmqrt_\w+\b(?!\.?\*)", path.read_text(encoding="utf-8"))

        assert named, path
        assert set(named) <= set(METRICS), path


def test_functions_stand_over_the_kind_they_are_for() -> None:
    """A rate of a gauge and the highest of a counter are numbers without a meaning."""
    for where, use in USES:
        calls = {call.name for call in use.around}
        wanted = {"counter": OF_COUNTERS, "gauge": OF_GAUGES}[use.kind]

        assert not calls & ((OF_COUNTERS | OF_GAUGES) - wanted), f"{where}: {use.name}"
        assert use.has_range == bool(calls & wanted), f"{where}: {use.name}"
        assert not use.has_range or use.around[-1].name in wanted, f"{where}: {use.name}"


def test_quantiles_are_of_buckets_and_keep_their_bounds() -> None:
    """Without `le` there is no quantile, and of anything but buckets neither."""
    for where, use in USES:
        is_inside = "histogram_quantile" in {call.name for call in use.around}

        assert is_inside == use.name.endswith("_bucket"), f"{where}: {use.name}"
        assert not is_inside or all("le" in (call.by or ()) for call in use.aggregators), f"{where}: {use.name}"


def test_labels_are_those_of_the_series() -> None:
    """In matchers and in `by`; and an outer `by` has nothing that an inner one took away."""
    for where, use in USES:
        by = [call.by or frozenset[str]() for call in use.aggregators]

        assert set(use.matched) <= use.labels, f"{where}: {use.name}"
        assert all(labels <= use.labels for labels in by), f"{where}: {use.name}"
        assert all(outer <= inner for outer, inner in pairwise(by)), f"{where}: {use.name}"


def test_the_fleet_is_not_counted_once_for_each_who_tells_it() -> None:
    """Bridges and broker tell the same fleet, so max or min comes first; what bridges served themselves adds up."""
    for where, use in USES:
        inner = use.aggregators[-1].name if use.aggregators else None
        if use.name.startswith("zmqrt_http_"):
            assert inner == "sum", f"{where}: {use.name}"
        else:
            assert inner in {"max", "min"} or use.name == "zmqrt_broker_up", f"{where}: {use.name}"


def test_reasons_are_those_of_errors() -> None:
    """An alert on a reason that has another name now would be silent."""
    kinds = {kind.value for kind in ErrorKind}
    matched = {use.matched["reason"] for _, use in USES if use.base == "zmqrt_request_failures_total" and use.matched}

    assert "poison" in matched
    assert {reason for one in matched for reason in one.split("|")} <= kinds


@pytest.mark.parametrize(
    "expression",
    ["max(rate(zmqrt_resumes_total[5m])", "max(zmqrt_batch_size))", "avg(zmqrt_batch_size)", "rate(x[5m]))"],
)
def test_what_cannot_be_read_is_no_expression(expression: str) -> None:
    """Brackets that do not match, and functions that nobody has looked at."""
    with pytest.raises(AssertionError):
        list(uses(expression))


# --- Prometheus -------------------------------------------------------------------------------------------------------


def test_alerts_say_how_bad_it_is_and_what_to_do() -> None:
    """Each one has a name of its own, a time, a severity, a summary, and a command of zmqrt in its description."""
    found = alerts()

    assert len({rule["alert"] for rule in found}) == len(found)
    for rule in found:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert re.fullmatch(r"Zmqrt[A-Za-z0-9]+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule["for"]), rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert "`zmqrt " in rule["annotations"]["description"], rule["alert"]


def test_commands_that_are_named_exist() -> None:
    """Also in the page for operators."""
    texts = [path.read_text(encoding="utf-8") for path in DEPLOY.rglob("*") if path.suffix in {".md", ".yml", ".json"}]
    named = {name for text in texts for name in re.findall(r"`zmqrt ([a-z]+)", text)}

    assert named >= {"status", "explain", "doctor", "drain"}
    assert named <= set(COMMANDS)


def kept(expression: str) -> set[str]:
    """Return the labels that the result has."""
    found = list(uses(expression))
    plain = [use.labels for use in found if not use.aggregators]
    return set[str]().union(*(use.aggregators[0].by or () for use in found if use.aggregators), *plain)


def test_texts_name_labels_that_the_result_has() -> None:
    """Prometheus and Grafana write nothing where a label is missing."""
    for rule in alerts():
        named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert named <= (kept(rule["expr"]) or TARGET), rule["alert"]
    for title, target in targets():
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert named == kept(target["expr"]) - {"le"} or (target["format"] == "table" and not named), title


def test_scrapes_are_those_that_the_alerts_expect() -> None:
    """An alert looks for the names of the jobs, and the rules are loaded."""
    told = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job for job in told["scrape_configs"]}

    assert set(jobs) == {"zmqrt-bridge", "zmqrt-broker", "zmqrt-worker"}
    assert told["rule_files"] == ["alerts.yml"]
    assert "credentials_file" in jobs["zmqrt-bridge"]["authorization"]
    for role in ("broker", "worker"):
        assert all(one["targets"][0].startswith("127.0.0.1:") for one in jobs[f"zmqrt-{role}"]["static_configs"])


# --- Grafana ----------------------------------------------------------------------------------------------------------


def load_script() -> ModuleType:
    """Import the script that writes the dashboard."""
    spec = importlib.util.spec_from_file_location("dashboard", DEPLOY / "grafana" / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboard"] = module
    spec.loader.exec_module(module)
    return module


def test_the_dashboard_is_current() -> None:
    """`make docs` was run after the last change of the script."""
    assert (DEPLOY / "grafana" / "zmqrt.json").read_text(encoding="utf-8") == load_script().text(), "run `make docs`"


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    """Return the places of the grid that a panel covers."""
    at = panel["gridPos"]
    return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}


def test_panels_have_ids_and_places_of_their_own() -> None:
    """On a grid of 24 columns; and the lines are full."""
    panels = dashboard()["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(0 <= x < 24 for panel in panels for x, _ in cells(panel))
    assert [(a["title"], b["title"]) for a, b in combinations(panels, 2) if cells(a) & cells(b)] == []
    covered = set[tuple[int, int]]().union(*map(cells, panels))
    assert len(covered) == 24 * (1 + max(y for _, y in covered))


def test_panels_explain_themselves() -> None:
    """Each one has a title, a description, a unit, and the datasource that was chosen."""
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]

    assert 20 <= len(panels) <= 30
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(one["datasource"]["uid"] == "${datasource}" for one in (panel, *panel["targets"])), panel["title"]
        assert len({one["refId"] for one in panel["targets"]}) == len(panel["targets"]), panel["title"]


def test_variables_are_filled_and_those_that_are_used_exist() -> None:
    """From labels that their metrics have."""
    told = dashboard()
    variables = {one["name"]: one for one in told["templating"]["list"]}

    assert list(variables) == ["datasource", "model", "node"]
    for name in ("model", "node"):
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables[name]["definition"])
        assert found is not None
        assert found[2] in METRICS[found[1]].labels
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(told)))
    assert used - {"__rate_interval", "__all"} == set(variables)


# --- systemd ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_a_program_of_ours_and_lets_it_drain(name: str) -> None:
    """Its program exists, and SIGKILL comes after the time in which it drains by default."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # names are told apart by case
    unit.read(DEPLOY / "systemd" / name, encoding="utf-8")
    service = unit["Service"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    settings = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    (drain_s,) = set(re.findall(r"^\| `drain_timeout` .*? \| `(\d+)s` \|", settings, re.MULTILINE))

    assert Path(service["ExecStart"]).name in scripts
    assert f"{Path(service['ExecStart']).name}.service" == name
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["TimeoutStopSec"]) > int(drain_s)
    assert int(service["LimitNOFILE"]) >= 65536
    assert service["Restart"] == "on-failure"


def test_a_worker_may_use_its_gpu_and_keeps_its_engines_while_it_drains() -> None:
    """Hardening that hides devices or forbids new code breaks CUDA; a SIGTERM to engines ends what still runs."""
    lines = (DEPLOY / "systemd" / "zmqrt-worker.service").read_text(encoding="utf-8").splitlines()
    names = {line.partition("=")[0] for line in lines}

    assert not names & {"PrivateDevices", "ProtectClock", "ProtectKernelTunables", "MemoryDenyWriteExecute"}
    assert "KillMode=mixed" in lines


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd itself reads the units here")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_knows_every_word_of_a_unit_and_finds_it_closed(name: str, tmp_path: Path) -> None:
    """A misspelt directive protects nobody, and is no error. A worker needs devices, so it is open a little wider."""
    unit = tmp_path / name
    text = (DEPLOY / "systemd" / name).read_text(encoding="utf-8")
    unit.write_text(re.sub("(?m)^ExecStart=.*", "ExecStart=/bin/true", text), encoding="utf-8")
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    threshold = "22" if "worker" in name else "15"  # tenths: 0 is closed, 10 open
    judge = ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", str(unit)]
    judged = subprocess.run(judge, capture_output=True, text=True, check=False)

    assert [line for line in verified.stderr.splitlines() if name in line] == []
    assert judged.returncode == 0, judged.stdout[-300:]


# --- packaging --------------------------------------------------------------------------------------------------------


def test_it_is_in_no_wheel() -> None:
    """Examples are read in the repository; what is installed is the roles."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]

    assert not any("deploy" in text for text in (*tool["packages"], *tool["package-dir"], *tool["package-data"]))
    assert not list(DEPLOY.rglob("__init__.py"))
