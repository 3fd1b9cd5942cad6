"""Write zmqrt.json, the dashboard for Grafana: `make docs` runs it, tests/test_deploy.py compares.

A panel is a few words here and seventy lines there, and the places on the grid follow from the widths. Whoever changes
the dashboard in Grafana itself brings the change back to this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
GRID_COLUMNS: Final = 24
SCHEMA_VERSION: Final = 39  # Grafana 11; newer ones migrate it by themselves
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
MODEL: Final = '{model=~"$model"}'
NODE: Final = '{node=~"$node"}'


# --- expressions: the fleet is told the same by everybody (max), bridges add up (sum) --------------------------------


def fleet(metric: str, by: str = "") -> str:
    """Return a gauge of the fleet."""
    return f"max by ({by}) ({metric})" if by else f"max({metric})"


def fleet_rate(metric: str, by: str = "") -> str:
    """Return a counter of the fleet, per second."""
    return fleet(f"rate({metric}[$__rate_interval])", by)


def fleet_quantile(share: float, metric: str, by: str) -> str:
    """Return a quantile of a histogram of the fleet."""
    name, brace, matchers = metric.partition("{")
    return f"histogram_quantile({share}, {fleet_rate(f'{name}_bucket{brace}{matchers}', f'le, {by}')})"


def bridges_rate(metric: str, by: str) -> str:
    """Return a counter of all bridges together, per second."""
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


# --- panels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One panel. `targets` are legend -> expression; the unit is Grafana's name for it."""

    title: str
    text: str
    targets: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    is_stacked: bool = False
    maximum: float | None = None
    steps: Sequence[tuple[float, str]] = ()
    """Values from which another colour holds."""
    columns: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """Of a table: query -> its heading and unit."""


def stat(
    title: str, text: str, unit: str = "short", *, steps: Sequence[tuple[float, str]] = (), **targets: str
) -> Panel:
    """Return a number of the overview."""
    return Panel(title, text, targets, unit, kind="stat", width=4, height=4, steps=steps)


def quantiles(title: str, text: str, metric: str, *, by: str = "model", width: int = 6) -> Panel:
    """Return the median and the slow end of a histogram."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    targets = {f"{legend} p{share * 100:g}": fleet_quantile(share, metric, by) for share in (0.5, 0.9, 0.99)}
    return Panel(title, text, targets, "s", width=width)


def devices(title: str, text: str, expression: str, unit: str = "short", *, maximum: float | None = None) -> Panel:
    """Return one line for each device."""
    return Panel(title, text, {"{{node}} {{device}}": expression}, unit, maximum=maximum)


_DEVICE: Final = "node, device"
_FIRST_TOKEN: Final = f"zmqrt_time_to_first_token_seconds_bucket{MODEL}"
_FIRST_TOKEN_OF_ALL: Final = f"sum by (le) ({fleet_rate(_FIRST_TOKEN, 'le, model')})"

ROWS: Final[Mapping[str, Sequence[Panel]]] = {
    "Overview": (
        stat(
            "Nodes up",
            "Nodes that are active and have loaded.",
            steps=((0, "red"), (1, "green")),
            up=f"sum(min by (node) (zmqrt_worker_up{NODE}))",
        ),
        stat("Running", "Requests at nodes.", running=f"sum({fleet(f'zmqrt_num_requests_running{MODEL}', 'model')})"),
        stat(
            "Waiting",
            "Requests in the broker's queue.",
            steps=((0, "green"), (1, "yellow"), (20, "red")),
            waiting=f"sum({fleet(f'zmqrt_num_requests_waiting{MODEL}', 'model')})",
        ),
        stat(
            "Tokens per second",
            "Tokens that all engines draw.",
            "suffix: tok/s",
            drawn=f"sum({fleet_rate(f'zmqrt_engine_tokens_total{NODE}', _DEVICE)})",
        ),
        stat(
            "First token",
            "From coming in to the first token, over all models: the median, and 99 %.",
            "s",
            p50=f"histogram_quantile(0.5, {_FIRST_TOKEN_OF_ALL})",
            p99=f"histogram_quantile(0.99, {_FIRST_TOKEN_OF_ALL})",
        ),
        stat(
            "Errors per second",
            "Requests that ended in an error. Those that were not taken in are under Requests.",
            "cps",
            steps=((0, "green"), (0.01, "yellow"), (1, "red")),
            # Without a broker there is nothing, and that is no error of a request.
            failed=f"sum({fleet_rate('zmqrt_request_failures_total', 'reason')}) or vector(0)",
        ),
    ),
    "Requests": (
        Panel(
            "Running and waiting",
            "Requests at nodes, and in the queue. A queue that stays wants another node.",
            {
                "{{model}} running": fleet(f"zmqrt_num_requests_running{MODEL}", "model"),
                "{{model}} waiting": fleet(f"zmqrt_num_requests_waiting{MODEL}", "model"),
            },
        ),
        Panel(
            "Answers",
            "By why they ended: stop, length, or none for embeddings.",
            {"{{model}} {{finish_reason}}": fleet_rate(f"zmqrt_request_success_total{MODEL}", "model, finish_reason")},
            "reqps",
            is_stacked=True,
        ),
        Panel(
            "Refused and failed",
            "Refused: not taken in (queue_full and memory_full are 429). Failed: taken in, and ended in an error.",
            {
                "refused: {{reason}}": fleet_rate("zmqrt_rejections_total", "reason"),
                "failed: {{reason}}": fleet_rate("zmqrt_request_failures_total", "reason"),
            },
            "reqps",
        ),
    ),
    "Latency": (
        quantiles("First token", "From coming in to the first token.", f"zmqrt_time_to_first_token_seconds{MODEL}"),
        quantiles("In the queue", "From coming in to a node.", f"zmqrt_request_queue_time_seconds{MODEL}"),
        quantiles(
            "Between tokens",
            "Time for each further token, the mean of one answer.",
            f"zmqrt_inter_token_latency_seconds{MODEL}",
        ),
        quantiles("Whole answers", "From coming in to the result.", f"zmqrt_e2e_request_latency_seconds{MODEL}"),
    ),
    "Nodes and devices": (
        Panel(
            "Nodes",
            "A node that is not up loads, drains, or is suspect: `zmqrt status` says which.",
            {
                "up": f"min by (node) (zmqrt_worker_up{NODE})",
                "running": fleet(f"zmqrt_worker_requests_in_flight{NODE}", "node"),
                "capacity": fleet(f"zmqrt_worker_capacity{NODE}", "node"),
                "heard": fleet(f"zmqrt_worker_heartbeat_age_seconds{NODE}", "node"),
                "tokens": f"sum by (node) ({fleet_rate(f'zmqrt_engine_tokens_total{NODE}', _DEVICE)})",
                "restarts": f"sum by (node) ({fleet(f'zmqrt_engine_restarts_total{NODE}', _DEVICE)})",
            },
            kind="table",
            width=GRID_COLUMNS,
            columns={
                "up": ("Up", "bool_yes_no"),
                "running": ("Requests", "short"),
                "capacity": ("Capacity", "short"),
                "heard": ("Last heard", "s"),
                "tokens": ("Tokens per second", "suffix: tok/s"),
                "restarts": ("Restarts of engines", "short"),
            },
        ),
        devices("Batch", "Sequences in the engine.", fleet(f"zmqrt_batch_size{NODE}", _DEVICE)),
        devices(
            "Memory for keys and values",
            "Share in use. Near 100 % requests wait in the engine.",
            fleet(f"zmqrt_kv_cache_usage_percent{NODE}", _DEVICE),
            "percent",
            maximum=100,
        ),
        devices(
            "Tokens per second",
            "Tokens drawn.",
            fleet_rate(f"zmqrt_engine_tokens_total{NODE}", _DEVICE),
            "suffix: tok/s",
        ),
        devices(
            "Memory of the device",
            "In use, as the driver tells; NVIDIA only.",
            fleet(f"zmqrt_device_memory_used_bytes{NODE}", _DEVICE),
            "bytes",
        ),
        devices(
            "Busy",
            "As the driver tells; NVIDIA only.",
            fleet(f"zmqrt_device_busy_percent{NODE}", _DEVICE),
            "percent",
            maximum=100,
        ),
        devices(
            "Temperature",
            "As the driver tells; NVIDIA only.",
            fleet(f"zmqrt_device_celsius{NODE}", _DEVICE),
            "celsius",
        ),
    ),
    "Resilience": (
        Panel(
            "Given to another node",
            "By why the first one did not finish, and how many went on with what they had made. Callers see a pause.",
            {
                "{{reason}}": fleet_rate("zmqrt_redispatches_total", "reason"),
                "resumed": fleet_rate("zmqrt_resumes_total"),
            },
            "cps",
            width=6,
        ),
        Panel(
            "Nobody waited any more",
            "Cancelled requests by where they were, and streams that were read too slowly.",
            {
                "{{stage}}": fleet_rate("zmqrt_cancellations_total", "stage"),
                "slow reader": fleet_rate("zmqrt_slow_readers_total"),
            },
            "cps",
            width=6,
        ),
        quantiles(
            "From a cancel to a free slot",
            "By device; one step is as it should be.",
            f"zmqrt_cancel_latency_seconds{NODE}",
            by=_DEVICE,
        ),
        Panel(
            "What broke",
            "Within ten minutes: nodes that fell silent (suspected), lost their connection (lost) or were silent too"
            " long (evicted), and engines that were started again.",
            {
                "suspected": fleet("increase(zmqrt_nodes_suspected_total[10m])"),
                "lost": fleet("increase(zmqrt_nodes_lost_total[10m])"),
                "evicted": fleet("increase(zmqrt_nodes_evicted_total[10m])"),
                "engine of {{node}} {{device}}": fleet(f"increase(zmqrt_engine_restarts_total{NODE}[10m])", _DEVICE),
            },
            width=6,
        ),
    ),
    "HTTP bridge": (
        Panel(
            "Answers by status",
            "Of all bridges together.",
            {"{{status}}": bridges_rate("zmqrt_http_requests_total", "status")},
            "reqps",
            width=6,
            is_stacked=True,
        ),
        Panel(
            "Time of an answer",
            "From the head of a request to the end of its answer, by route; a stream takes as long as it is.",
            {
                f"{{{{path}}}} p{share * 100:g}": f"histogram_quantile({share}, "
                + bridges_rate('zmqrt_http_request_duration_seconds_bucket{method="POST"}', "le, path")
                + ")"
                for share in (0.5, 0.99)
            },
            "s",
            width=6,
        ),
        Panel(
            "Open requests",
            "By bridge: requests whose answer has not ended.",
            {"{{instance}}": "sum by (instance) (zmqrt_http_requests_in_flight)"},
            width=6,
        ),
        Panel(
            "Callers who left",
            "Before the first token (waiting), or while they got an answer (streaming).",
            {"{{stage}}": bridges_rate("zmqrt_http_callers_left_total", "stage")},
            "cps",
            width=6,
        ),
    ),
}


# --- Grafana's JSON --------------------------------------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    """Return the whole of it."""
    return {
        "uid": "zmqrt",
        "title": "zmqrt",
        "description": "Real-time model inference over ZeroMQ. Written by deploy/grafana/dashboard.py.",
        "tags": ["zmqrt"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"},
                _variable("model", "zmqrt_model_nodes"),
                _variable("node", "zmqrt_worker_up"),
            ]
        },
        "panels": list(_panels()),
    }


def _variable(label: str, metric: str) -> dict[str, Any]:
    query = f"label_values({metric}, {label})"
    return {
        "type": "query",
        "name": label,
        "label": label.capitalize(),
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": label},
        "definition": query,
        "refresh": 2,  # with the time range: nodes come and go
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels() -> Iterator[dict[str, Any]]:
    """Yield rows and panels from left to right, a new line where one does not fit any more."""
    number, y = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "type": "row",
            "id": number,
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": _at(0, y, 24, 1),
        }
        x, y, line = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > GRID_COLUMNS:
                x, y, line = 0, y + line, 0
            number += 1
            yield {"id": number, "gridPos": _at(x, y, panel.width, panel.height), **_panel(panel)}
            x, line = x + panel.width, max(line, panel.height)
        y += line


def _at(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel) -> dict[str, Any]:
    shape = {"stat": _stat, "table": _table, "timeseries": _lines}[panel.kind]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "targets": [_target(panel, *one) for one in enumerate(panel.targets.items())],
        **shape(panel),
    }


def _target(panel: Panel, number: int, named: tuple[str, str]) -> dict[str, Any]:
    legend, expression = named
    is_table = panel.kind == "table"
    return {
        "refId": legend if is_table else chr(ord("A") + number),
        "datasource": DATASOURCE,
        "expr": expression,
        "legendFormat": legend,
        "instant": is_table,
        "range": not is_table,
        "format": "table" if is_table else "time_series",
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    colours = panel.steps or [(0, "text")]
    steps: list[dict[str, Any]] = [{"color": colour, "value": value} for value, colour in colours]
    steps[0]["value"] = None  # the first one holds from below
    return {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}


def _stat(panel: Panel) -> dict[str, Any]:
    return {
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": {
            "colorMode": "value" if panel.steps else "none",
            "graphMode": "area" if len(panel.targets) == 1 else "none",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
        },
    }


def _lines(panel: Panel) -> dict[str, Any]:
    drawing = {
        "fillOpacity": 20 if panel.is_stacked else 5,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
    }
    bounds = {"min": 0} | ({"max": panel.maximum} if panel.maximum is not None else {})
    return {
        "fieldConfig": {"defaults": {**_defaults(panel), **bounds, "custom": drawing}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _table(panel: Panel) -> dict[str, Any]:
    headings = {f"Value #{query}": heading for query, (heading, _) in panel.columns.items()}
    overrides = [
        {"matcher": {"id": "byName", "options": heading}, "properties": [{"id": "unit", "value": unit}]}
        for heading, unit in panel.columns.values()
    ]
    return {
        "fieldConfig": {"defaults": _defaults(panel), "overrides": overrides},
        "options": {"showHeader": True, "cellHeight": "sm"},
        "transformations": [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {"excludeByName": {"Time": True}, "renameByName": {"node": "Node", **headings}},
            },
        ],
    }


def text() -> str:
    """Return what stands in zmqrt.json."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "zmqrt.json").write_text(text(), encoding="utf-8")
