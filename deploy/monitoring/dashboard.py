#!/usr/bin/env python3
"""Writes dashboard.json, a Grafana dashboard of training runs: Dashboards, New, Import.

    deploy/monitoring/dashboard.py            # writes dashboard.json beside this file
    deploy/monitoring/dashboard.py --check    # exits with 1 if dashboard.json is not what it would write

The panels are the table below. $instance is which runs are shown; $__rate_interval is Grafana's, at least four scrapes.
"""
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

PLACE = Path(__file__).with_name("dashboard.json")
SHOWN = '{instance=~"$instance"}'
WAITS = "reduce_scatter|agreement|all_gather|step_message"


@dataclass(frozen=True)
class Query:
    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str  # as Grafana names units; "short" is a plain number
    queries: list[Query]
    description: str = ""
    kind: str = "timeseries"
    logarithmic: bool = False
    width: int = 8  # of 24 columns


@dataclass(frozen=True)
class Row:
    title: str
    panels: list[Panel] = field(default_factory=list)


def shown(metric, legend="{{instance}}"):
    return Query(metric + SHOWN, legend)


def age(metric):
    return Query(f"time() - {metric}{SHOWN}", "{{instance}}")


def per_second(metric, legend="{{instance}}"):
    return Query(f"rate({metric}{SHOWN}[$__rate_interval])", legend)


def step_quantile(quantile, name):
    buckets = f"rate(fusedbun_step_duration_seconds_bucket{SHOWN}[$__rate_interval])"
    return Query(f"histogram_quantile({quantile}, sum by (instance, le) ({buckets}))", "{{instance}} " + name)


ROWS = [
    Row("Runs", [
        Panel("Progress", "percentunit", [Query(f"fusedbun_step{SHOWN} / fusedbun_planned_steps{SHOWN}", "{{instance}}")],
              kind="gauge", width=6),
        Panel("Since the last step", "s", [age("fusedbun_last_step_timestamp_seconds")], kind="stat", width=6),
        Panel("Since the last checkpoint", "s", [age("fusedbun_checkpoint_last_success_timestamp_seconds")], kind="stat", width=6),
        Panel("Tokens per second", "short", [per_second("fusedbun_tokens_total")],
              "All ranks, validation and saves included.", kind="stat", width=6),
    ]),
    Row("Training", [
        Panel("Loss", "short", [shown("fusedbun_loss", "{{instance}} training"),
                                shown("fusedbun_validation_loss", "{{instance}} validation")], "Nats per token."),
        Panel("Gradient norm", "short", [shown("fusedbun_grad_norm")], "Before clipping; nothing without clipping.", logarithmic=True),
        Panel("Learning rate", "short", [shown("fusedbun_learning_rate", "{{instance}} {{group}}")],
              "As the last step used it: schedule, pin and scale."),
        Panel("Changes", "short", [shown("fusedbun_config_revision")], "The newest change that a step used (fusedbun set)."),
        Panel("Skipped steps", "short", [Query(f"increase(fusedbun_skipped_steps_total{SHOWN}[$__rate_interval])", "{{instance}}")],
              "A gradient was NaN or inf."),
        Panel("Tokens per second", "short", [shown("fusedbun_tokens_per_second")], "Of the last step."),
    ]),
    Row("Where time goes", [
        Panel("Step", "s", [step_quantile(0.5, "median"), step_quantile(0.99, "99 %")]),
        Panel("Per step, by phase", "s", [
            Query(f"sum by (instance, phase) (rate(fusedbun_phase_seconds_total{SHOWN}[$__rate_interval])) / on (instance) group_left () "
                  f"(fusedbun_world_size{SHOWN} * rate(fusedbun_steps_total{SHOWN}[$__rate_interval]))", "{{phase}}")],
              "Mean of all ranks."),
        Panel("Waits for others, by rank", "percentunit", [
            Query("sum by (instance, rank) (rate(fusedbun_phase_seconds_total"
                  f'{{instance=~"$instance", phase=~"{WAITS}"}}[$__rate_interval]))', "{{instance}} rank {{rank}}")],
              "Part of its time. Whom the others wait for waits least."),
        Panel("Sent to other ranks", "Bps", [per_second("fusedbun_comm_sent_bytes_total", "{{instance}} rank {{rank}}")],
              "Messages over Gloo or MPI; ranks of one host may read gradients in shared memory instead."),
    ]),
    Row("Ranks", [
        Panel("Age of heartbeats", "s", [shown("fusedbun_peer_heartbeat_age_seconds", "{{instance}} rank {{rank}}")]),
        Panel("Alive", "short", [Query(f"sum by (instance) (fusedbun_rank_alive{SHOWN})", "{{instance}}"),
                                 shown("fusedbun_world_size", "{{instance}} all")]),
        Panel("Resident memory", "bytes", [shown("fusedbun_rank_resident_memory_bytes", "{{instance}} rank {{rank}}")]),
        Panel("Optimizer state", "bytes", [shown("fusedbun_shard_bytes", "{{instance}} rank {{rank}}")]),
        Panel("Where they are", "short", [shown("fusedbun_rank_info", "{{rank}}: {{host}}, pid {{pid}}, {{device}}")],
              kind="table", width=16),
    ]),
    Row("Checkpoints", [
        Panel("Step of the newest", "short", [shown("fusedbun_checkpoint_step")]),
        Panel("Time to save", "s", [shown("fusedbun_checkpoint_duration_seconds")], "Training goes on meanwhile."),
        Panel("Size", "bytes", [shown("fusedbun_checkpoint_bytes")], "Of all ranks."),
    ]),
]
PANEL_HEIGHT = 8
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def target(panel, index, query):
    written = {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query.expression, "legendFormat": query.legend}
    return written | ({"format": "table", "instant": True} if panel.kind == "table" else {})


def panel_json(panel, number, x, y):
    custom = {"scaleDistribution": {"type": "log", "log": 10}} if panel.logarithmic else {}
    return {
        "id": number, "type": panel.kind, "title": panel.title, "description": panel.description, "datasource": SOURCE,
        "gridPos": {"h": PANEL_HEIGHT, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "targets": [target(panel, index, query) for index, query in enumerate(panel.queries)],
    }


def panels_json(rows):
    written, y = [], 0
    for row in rows:
        written.append({"id": len(written) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                        "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y}})
        y, x = y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x = y + PANEL_HEIGHT, 0
            written.append(panel_json(panel, len(written) + 1, x, y))
            x += panel.width
        y += PANEL_HEIGHT
    return written


def variables_json():
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {"name": "instance", "type": "query", "label": "Run", "datasource": SOURCE, "refresh": 2, "multi": True, "includeAll": True,
         "query": {"query": "label_values(fusedbun_build_info, instance)", "refId": "instance"},
         "current": {"text": "All", "value": "$__all"}},
    ]


def dashboard():
    return {
        "title": "fusedbun", "uid": "fusedbun", "tags": ["training"], "schemaVersion": 37, "editable": True, "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"}, "templating": {"list": variables_json()}, "panels": panels_json(ROWS),
    }


def main(words):
    text = json.dumps(dashboard(), indent=1) + "\n"
    if words == ["--check"]:
        return 0 if PLACE.exists() and PLACE.read_text() == text else 1
    if words:
        print(__doc__, file=sys.stderr)
        return 64
    PLACE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
