"""Alerts and dashboards name only what the service exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.telemetry.metrics import TABLE, Kind

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "deepsynth.json"
FROM_PROMETHEUS = {"up", "scrape_series_added"}
FROM_THE_CLIENT_LIBRARY = {"process_resident_memory_bytes"}
SELECTORS_RANGES_GROUPS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on) \([^)]*\)")
WORDS = {"and", "or", "unless"}


def yaml_file(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml_file("deploy/prometheus/alerts.yml")["groups"] for rule in group["rules"]]


def exported() -> set[str]:
    names = FROM_PROMETHEUS | FROM_THE_CLIENT_LIBRARY | {rule["record"] for rule in rules() if "record" in rule}
    for metric in TABLE:
        parts = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        names |= {metric.name + part for part in parts}
    return names


def series_in(expression: str) -> set[str]:
    """Names of the series that an expression reads: every name that is no function, number or word of the language."""
    bare = SELECTORS_RANGES_GROUPS.sub(" ", expression)
    return set(re.findall(r"(?<![\w.:])[a-z_][\w:]*\b(?!\s*\()", bare)) - WORDS


def labels_in(expression: str) -> set[tuple[str, str]]:
    """Pairs of metric and label that selectors name, with the parts of a histogram cut off."""
    pairs = set()
    for name, selector in re.findall(r"([a-z_:0-9]+)\{([^}]*)\}", expression):
        metric = re.sub(r"_(bucket|sum|count)$", "", name)
        pairs |= {(metric, label) for label in re.findall(r"([a-z_]+)\s*(?:=~|=|!=|!~)", selector)}
    return pairs


def expressions() -> dict[str, str]:
    found = {rule.get("record") or rule["alert"]: rule["expr"] for rule in rules()}
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
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


def test_prometheus_scrapes_the_job_and_the_port_that_the_rest_expects() -> None:
    (job,) = yaml_file("deploy/prometheus/prometheus.yml")["scrape_configs"]
    services = yaml_file("docker-compose.yml")["services"]
    assert job["job_name"] == "deepsynth"
    for target in [target for config in job["static_configs"] for target in config["targets"]]:
        name, port = target.split(":")
        assert services[name]["environment"]["DEEPSYNTH_PORT"] == port


def test_the_dashboard_uses_the_provisioned_data_source() -> None:
    (source,) = yaml_file("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    panels = [panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}


def test_every_alert_is_tried_both_ways() -> None:
    quiet, loud = yaml_file("tests/e2e/alerts_test.yml")["tests"]
    names = {rule["alert"] for rule in rules() if "alert" in rule}
    fired = {re.findall(r'"(\w+)"', sample["labels"])[0] for sample in loud["promql_expr_test"][0]["exp_samples"]}
    assert {case["alertname"] for case in quiet["alert_rule_test"]} == names
    assert fired == names
