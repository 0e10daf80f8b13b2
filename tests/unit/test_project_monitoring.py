"""Alerts and dashboards name only what the service exports."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config import variable_names
from service.telemetry.metrics import TABLE, Kind, Metrics

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "deepsynth.json"
RUNBOOK = ROOT / "docs" / "operations.md"
FROM_PROMETHEUS = {"up", "scrape_series_added"}
FROM_THE_INSTRUMENTATOR = {"http_request_duration_seconds_bucket"}
FROM_DCGM = {
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_XID_ERRORS",
}
"""Of NVIDIA's dcgm-exporter."""
ROWS = [
    "Service level",
    "Latency anatomy",
    "Queue and batches",
    "Tokens and pages",
    "Input and keys",
    "Adapters",
    "Samples and privacy",
    "Jobs",
    "Process",
    "GPU",
]
SELECTORS_RANGES_GROUPS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on) \([^)]*\)")
WORDS = {"and", "or", "unless"}


@cache
def yaml_file(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml_file("deploy/prometheus/alerts.yml")["groups"] for rule in group["rules"]]


def alerts() -> list[str]:
    return [rule["alert"] for rule in rules() if "alert" in rule]


@cache
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


@cache
def exported() -> set[str]:
    names = FROM_PROMETHEUS | FROM_THE_INSTRUMENTATOR | FROM_DCGM
    names |= {rule["record"] for rule in rules() if "record" in rule}
    names |= {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    for metric in TABLE:
        parts = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        names |= {metric.name + part for part in parts}
    return names


def series_in(expression: str) -> set[str]:
    """Names of the series that an expression reads: every name that is no function, number or word of the language."""
    bare = SELECTORS_RANGES_GROUPS.sub(" ", expression)
    return set(re.findall(r"(?<![\w.:])[A-Za-z_][\w:]*\b(?!\s*\()", bare)) - WORDS


def labels_in(expression: str) -> set[tuple[str, str]]:
    """Pairs of metric and label that selectors name, with the parts of a histogram cut off."""
    pairs = set()
    for name, selector in re.findall(r"([a-z_:0-9]+)\{([^}]*)\}", expression):
        metric = re.sub(r"_(bucket|sum|count)$", "", name)
        pairs |= {(metric, label) for label in re.findall(r"([a-z_]+)\s*(?:=~|=|!=|!~)", selector)}
    return pairs


@cache
def expressions() -> dict[str, str]:
    found = {rule.get("record") or rule["alert"]: rule["expr"] for rule in rules()}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    for annotation in dashboard()["annotations"]["list"]:
        found[annotation["name"]] = annotation["expr"]
    return found


@pytest.mark.parametrize("name", expressions())
def test_an_expression_reads_only_exported_series(name: str) -> None:
    named = series_in(expressions()[name])
    assert named
    assert named - exported() == set()


@pytest.mark.parametrize("name", expressions())
def test_an_expression_selects_only_on_labels_that_exist(name: str) -> None:
    labels = {metric.name: set(metric.labels) for metric in TABLE}
    everywhere = {"job", "instance"}
    assert [
        (m, label) for m, label in labels_in(expressions()[name]) if label not in labels.get(m, set()) | everywhere
    ] == []


def test_alerts_select_on_values_that_exist() -> None:
    values = {(metric.name, label): set(known) for metric in TABLE for label, known in metric.labels.items() if known}
    strays = []
    for rule in rules():
        for name, selector in re.findall(r"([a-z_:0-9]+)\{([^}]*)\}", rule["expr"]):
            for label, wanted in re.findall(r'([a-z_]+)=~?"([^"]*)"', selector):
                known = values.get((name, label))
                strays += [value for value in wanted.split("|") if known is not None and value not in known]
    assert strays == []


def test_every_alert_says_how_bad_it_is_and_what_it_means() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_the_runbook_says_of_every_alert_what_it_means_and_what_to_do() -> None:
    sections = re.split(r"^#### ", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    entries = {title: body for title, _, body in (section.partition("\n") for section in sections)}
    assert sorted(entries) == sorted(alerts())
    for name, body in entries.items():
        meaning, _, action = body.partition("**Do:**")
        assert len(meaning.split()) > 5, name
        assert len(action.split()) > 3, name


def test_links_and_metrics_of_the_runbook_exist() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors
    named = {name.partition("{")[0] for name in re.findall(r"`(deepsynth_[a-z_]+(?:\{[^`]*)?)`", text)}
    assert named - {metric.name for metric in TABLE} == set()
    panels = {panel["title"] for panel in dashboard()["panels"]}
    assert set(re.findall(r"(?<!\*)\*([A-Z][^*\n]*)\*(?!\*)", " ".join(text.split()))) <= panels


def test_the_dashboard_has_a_row_for_each_side_of_the_service() -> None:
    assert [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"] == ROWS


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_metric_is_on_a_panel_or_in_a_rule() -> None:
    seen = {re.sub(r"_(bucket|sum|count)$", "", name) for text in expressions().values() for name in series_in(text)}
    assert {metric.name for metric in TABLE} - seen == set()


def test_prometheus_scrapes_the_job_and_the_port_that_the_rest_expects() -> None:
    (job,) = yaml_file("deploy/prometheus/prometheus.yml")["scrape_configs"]
    services = yaml_file("docker-compose.yml")["services"]
    assert job["job_name"] == "deepsynth"
    for target in [target for config in job["static_configs"] for target in config["targets"]]:
        name, port = target.split(":")
        assert services[name]["environment"]["DEEPSYNTH_PORT"] == port


@pytest.mark.parametrize("name", ["api", "api-gpu"])
def test_compose_passes_every_setting_on(name: str) -> None:
    environment = yaml_file("docker-compose.yml")["services"][name]["environment"]
    assert set(variable_names()) - set(environment) == set()


def test_the_dashboard_uses_the_provisioned_data_source() -> None:
    (source,) = yaml_file("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}


def test_every_alert_is_tried_both_ways() -> None:
    tests = {test["name"]: test for test in yaml_file("tests/e2e/alerts_test.yml")["tests"]}
    quiet, loud = tests["a healthy service raises nothing"], tests["everything at once"]
    fired = [re.findall(r'"(\w+)"', sample["labels"])[0] for sample in loud["promql_expr_test"][0]["exp_samples"]]
    assert [case["alertname"] for case in quiet["alert_rule_test"]] == alerts()
    assert fired == alerts()


def test_series_of_the_rules_tests_are_exported() -> None:
    named = {
        series["series"].partition("{")[0]
        for test in yaml_file("tests/e2e/alerts_test.yml")["tests"]
        for series in test["input_series"]
    }
    assert named - exported() == set()
