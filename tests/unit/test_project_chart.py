"""The Helm chart: rendered by Helm, its objects held against Kubernetes' schemas, and what an operator relies on.

Kubernetes' own kinds are checked by kubernetes-validate, strictly (an unknown field fails), against the oldest release
that the chart takes and the newest that the package knows; PodMonitor and ScaledObject by the models that cloudcoil
generates from the operators' definitions.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.cli.serve import STOP_MARGIN_S
from service.config import load_settings, variable_names
from service.telemetry.metrics import TABLE
from tests.support.chart import CHART, Rendered, lint, merged, render, values_file, values_files
from tests.support.programs import ROOT
from trainer.cli import build_parser

if importlib.util.find_spec("helm_python") is None:
    pytest.skip("Helm's library is not built for this platform", allow_module_level=True)

OLDEST, NEWEST = "1.30.0", "1.37.0"
NAMES = values_files()


@pytest.fixture(scope="module")
def custom() -> dict[str, Any]:
    """Models of kinds that are not Kubernetes' own; seconds to import, which every process would spend to collect."""
    from cloudcoil.models.keda.v1alpha1 import ScaledObject
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule

    return {"PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule, "ScaledObject": ScaledObject}


@pytest.fixture(scope="module")
def charts() -> dict[str, Rendered]:
    return {name: render(values_file(name)) for name in NAMES}


def pods(rendered: Rendered) -> Iterator[dict[str, Any]]:
    """The specification of every pod that the objects make."""
    for each in rendered.objects:
        if each["kind"] in ("StatefulSet", "Job"):
            yield each["spec"]["template"]["spec"]
        elif each["kind"] == "Pod":
            yield each["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def api(rendered: Rendered) -> dict[str, Any]:
    (container,) = rendered.one("StatefulSet")["spec"]["template"]["spec"]["containers"]
    return container


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in container["volumeMounts"]}


def volumes(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in pod["volumes"]}


@pytest.mark.parametrize("name", NAMES)
def test_helm_renders_the_chart_and_its_lint_has_no_complaint(charts: dict[str, Rendered], name: str) -> None:
    assert charts[name].error == ""
    assert charts[name].objects
    assert lint(values_file(name)) == []


@pytest.mark.parametrize("release", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", NAMES)
def test_every_object_meets_its_schema(
    charts: dict[str, Rendered], custom: dict[str, Any], name: str, release: str
) -> None:
    for each in charts[name].objects:
        if each["kind"] in custom:
            custom[each["kind"]].model_validate(each)
        else:
            kubernetes_validate.validate(each, release, strict=True)


def test_a_field_that_kubernetes_does_not_know_fails(charts: dict[str, Rendered], custom: dict[str, Any]) -> None:
    broken = merged(charts["default"].one("StatefulSet"), {"spec": {"replicaz": 1}})
    with pytest.raises(kubernetes_validate.ValidationError, match="replicaz"):
        kubernetes_validate.validate(broken, NEWEST, strict=True)
    with pytest.raises(ValueError, match="podMetricsEndpoints"):
        custom["PodMonitor"].model_validate(
            merged(charts["gpu"].one("PodMonitor"), {"spec": {"podMetricsEndpoints": 1}})
        )


def test_lint_finds_a_broken_template(tmp_path: Path) -> None:
    copy = shutil.copytree(CHART, tmp_path / "deepsynth-ocr")
    (copy / "templates" / "broken.yaml").write_text("a: [", encoding="utf-8")
    assert lint({}, copy) != []


@pytest.mark.parametrize("name", NAMES)
def test_names_are_unique_and_selectors_meet_their_pods(charts: dict[str, Rendered], name: str) -> None:
    keys = [(each["kind"], each["metadata"]["name"]) for each in charts[name].objects]
    assert len(keys) == len(set(keys))
    labels = charts[name].one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    selectors = [service["spec"]["selector"] for service in charts[name].of("Service")]
    for kind in ("StatefulSet", "PodDisruptionBudget", "PodMonitor"):
        selectors += [each["spec"]["selector"]["matchLabels"] for each in charts[name].of(kind)]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in charts[name].of("NetworkPolicy", "api")]
    assert selectors
    assert all(selector.items() <= labels.items() for selector in selectors)


@pytest.mark.parametrize("name", NAMES)
def test_every_pod_meets_the_restricted_security_standard(charts: dict[str, Rendered], name: str) -> None:
    found = list(pods(charts[name]))
    assert found
    for pod in found:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", NAMES)
def test_the_pod_runs_as_the_user_of_the_image(charts: dict[str, Rendered], name: str) -> None:
    for dockerfile in ("Dockerfile.api", "Dockerfile.train"):
        assert "USER 10001:10001" in (ROOT / dockerfile).read_text(encoding="utf-8")
    assert {pod["securityContext"]["runAsUser"] for pod in pods(charts[name])} == {10001}


@pytest.mark.parametrize("drain", [{}, {"preStopSeconds": 30, "deadlineSeconds": 600, "marginSeconds": 20}])
def test_the_grace_covers_the_wait_and_the_longest_page(drain: dict[str, int]) -> None:
    rendered = render({"drain": drain})
    pod, container = rendered.one("StatefulSet")["spec"]["template"]["spec"], api(rendered)
    given = environment(container)
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    longest = float(given["DEEPSYNTH_DEADLINE_S"]) + float(given["DEEPSYNTH_DRAIN_GRACE_S"]) + STOP_MARGIN_S
    assert wait == drain.get("preStopSeconds", 10)
    assert pod["terminationGracePeriodSeconds"] >= wait + longest + 5
    # The pod turns unready first and keeps serving until Kubernetes has removed its endpoint.
    assert wait > 0


def test_the_start_may_take_minutes_and_a_dead_process_is_noticed_in_one(charts: dict[str, Rendered]) -> None:
    container = api(charts["default"])
    startup, live = container["startupProbe"], container["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 900
    assert (startup["httpGet"]["path"], live["httpGet"]["path"]) == ("/readyz", "/livez")
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert live["periodSeconds"] * live["failureThreshold"] <= 60


@pytest.mark.parametrize("name", NAMES)
def test_settings_that_the_chart_gives_exist_and_are_valid(charts: dict[str, Rendered], name: str) -> None:
    given = environment(api(charts[name]))
    from_secret = {each for each, value in given.items() if not isinstance(value, str)}
    assert from_secret - set(variable_names()) == {"HF_TOKEN"}
    settings = load_settings({each: value for each, value in given.items() if isinstance(value, str)}, env_file=None)
    assert settings.require_keys is (name != "laptop")
    assert settings.drain_grace_s == 0


def test_a_gpu_is_asked_for_and_its_nodes_are_tolerated(charts: dict[str, Rendered]) -> None:
    pod = charts["gpu"].one("StatefulSet")["spec"]["template"]["spec"]
    assert api(charts["gpu"])["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert environment(api(charts["gpu"]))["DEEPSYNTH_DEVICE"] == "cuda"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert pod["runtimeClassName"] == "nvidia"
    assert volumes(pod)["shared-memory"]["emptyDir"]["medium"] == "Memory"
    assert "nvidia.com/gpu" not in api(charts["default"])["resources"]["limits"]
    assert environment(api(charts["default"]))["DEEPSYNTH_DEVICE"] == "cpu"


def test_the_service_only_reads_the_adapters_that_the_trainer_writes(charts: dict[str, Rendered]) -> None:
    rendered = charts["gpu"]
    service = rendered.one("StatefulSet")["spec"]["template"]["spec"]
    trainer = rendered.one("Job")["spec"]["template"]["spec"]
    claims = [volumes(pod)["adapters"]["persistentVolumeClaim"] for pod in (service, trainer)]
    assert claims[0]["claimName"] == claims[1]["claimName"]
    assert claims[0]["claimName"] in {each["metadata"]["name"] for each in rendered.of("PersistentVolumeClaim")}
    assert (claims[0]["readOnly"], claims[1].get("readOnly", False)) == (True, False)
    assert mounts(api(rendered))["adapters"]["readOnly"] is True
    assert "readOnly" not in mounts(trainer["containers"][0])["adapters"]
    assert environment(api(rendered))["DEEPSYNTH_ADAPTER_DIR"] == mounts(api(rendered))["adapters"]["mountPath"]


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_mounted_is_a_volume(charts: dict[str, Rendered], name: str) -> None:
    for each in charts[name].objects:
        if each["kind"] not in ("StatefulSet", "Job"):
            continue
        pod = each["spec"]["template"]["spec"]
        claims = {claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", ())}
        for container in containers(pod):
            assert set(mounts(container)) == set(volumes(pod)) | claims


@pytest.mark.parametrize("name", ["gpu", "keda"])
def test_the_trainer_takes_the_arguments_of_every_step(charts: dict[str, Rendered], name: str) -> None:
    for step in containers(charts[name].one("Job")["spec"]["template"]["spec"]):
        assert build_parser().parse_args(step["args"]).command == step["args"][0]


def steps_of_examples() -> dict[str, list[dict[str, Any]]]:
    """Steps of values files, and those that the comments of values.yaml and the deployment's page show."""
    found = {name: (values_file(name).get("trainer") or {}).get("steps", []) for name in NAMES}
    commented = re.findall(r"# - (\{name: .*\})", (CHART / "values.yaml").read_text(encoding="utf-8"))
    found["values.yaml"] = [yaml.safe_load(line) for line in commented]
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "steps:" in text]
    found["deployment.md"] = yaml.safe_load(block)["trainer"]["steps"]
    return found


@pytest.mark.parametrize("where", [*NAMES, "values.yaml", "deployment.md"])
def test_what_is_published_was_measured_in_a_step_before(where: str) -> None:
    measured: set[str] = set()
    for step in steps_of_examples()[where]:
        options = build_parser().parse_args(step["args"])
        if options.command == "evaluate":
            assert options.adapter == str(options.out)
            measured.add(options.adapter)
        if options.command == "publish":
            assert str(options.adapter) in measured or options.data is not None


def test_the_ingress_leads_to_the_api(charts: dict[str, Rendered]) -> None:
    ingress = charts["gpu"].one("Ingress")
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "ocr.example.org"
    (tls,) = ingress["spec"]["tls"]
    assert tls["hosts"] == ["ocr.example.org"]
    assert tls["secretName"].startswith("ocr-example-org")
    backend = rule["http"]["paths"][0]["backend"]["service"]
    (service,) = [each for each in charts["gpu"].of("Service") if each["metadata"]["name"] == backend["name"]]
    assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    assert charts["default"].of("Ingress") == []


def test_the_trainer_runs_its_steps_in_order_each_with_the_gpu(charts: dict[str, Rendered]) -> None:
    pod = charts["gpu"].one("Job")["spec"]["template"]["spec"]
    assert [step["name"] for step in containers(pod)] == ["train", "evaluate", "publish"]
    assert pod["restartPolicy"] == "Never"
    assert all(step["resources"]["limits"]["nvidia.com/gpu"] == 1 for step in containers(pod))


def test_other_values_make_another_job_and_the_same_values_the_same(charts: dict[str, Rendered]) -> None:
    values = values_file("gpu")
    name = charts["gpu"].one("Job")["metadata"]["name"]
    assert render(values).one("Job")["metadata"]["name"] == name
    assert render(merged(values, {"trainer": {"backoffLimit": 5}})).one("Job")["metadata"]["name"] != name


def test_keys_come_from_a_secret_and_none_is_in_an_object(charts: dict[str, Rendered]) -> None:
    rendered = charts["default"]
    pod = rendered.one("StatefulSet")["spec"]["template"]["spec"]
    given = environment(api(rendered))
    assert rendered.of("Secret") == []
    assert volumes(pod)["keys"]["secret"]["secretName"] == "deepsynth-keys"  # pragma: allowlist secret
    # Mounted as a folder: a file mounted by subPath would never change.
    assert "subPath" not in mounts(api(rendered))["keys"]
    assert given["DEEPSYNTH_KEY_FILE"] == mounts(api(rendered))["keys"]["mountPath"] + "/keys.json"
    assert given["DEEPSYNTH_ADMIN_KEY"]["secretKeyRef"] == {
        "name": "deepsynth-keys", "key": "admin-key", "optional": True,
    }  # fmt: skip
    assert "DEEPSYNTH_KEY_FILE" not in environment(api(charts["laptop"]))


def test_the_autoscalers_follow_waiting_and_running_requests(charts: dict[str, Rendered]) -> None:
    exported = {metric.name for metric in TABLE}
    hpa, keda = charts["gpu"].one("HorizontalPodAutoscaler")["spec"], charts["keda"].one("ScaledObject")["spec"]
    by_hpa = {metric["pods"]["metric"]["name"]: metric["pods"]["target"]["averageValue"] for metric in hpa["metrics"]}
    assert by_hpa == {"deepsynth_queue_depth": "16", "deepsynth_requests_running": "48"}
    assert by_hpa.keys() <= exported
    queries = [trigger["metadata"]["query"] for trigger in keda["triggers"]]
    pods_of_release = '{namespace="ocr",pod=~"reading-[0-9]+"}'
    assert queries == [f"sum({name}{pods_of_release})" for name in by_hpa]
    for scaler, name in ((hpa, "gpu"), (keda, "keda")):
        target = charts[name].one("StatefulSet")
        assert scaler["scaleTargetRef"]["name"] == target["metadata"]["name"]
        # Two owners of one number would undo each other's work.
        assert "replicas" not in target["spec"]
    assert charts["default"].one("StatefulSet")["spec"]["replicas"] == 1


def test_prometheus_finds_the_job_name_of_the_alerts(charts: dict[str, Rendered]) -> None:
    (endpoint,) = charts["gpu"].one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "deepsynth"}]
    assert endpoint["port"] in {port["name"] for port in api(charts["gpu"])["ports"]}


def test_the_rules_are_those_of_prometheus(charts: dict[str, Rendered]) -> None:
    written = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    rule = charts["gpu"].one("PrometheusRule")
    assert rule["spec"]["groups"] == written["groups"]
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    assert charts["default"].of("PrometheusRule") == []


def test_the_port_for_operators_is_scraped_and_opened_to_those_alone(charts: dict[str, Rendered]) -> None:
    rendered = charts["gpu"]
    ports = {port["name"]: port["containerPort"] for port in api(rendered)["ports"]}
    assert environment(api(rendered))["DEEPSYNTH_ADMIN_PORT"] == str(ports["admin"])
    assert rendered.one("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] == "admin"
    rules = {rule["ports"][0]["port"]: rule["from"] for rule in rendered.one("NetworkPolicy", "api")["spec"]["ingress"]}
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert rules["admin"] == [monitoring]
    # Prometheus and operators have a port of their own, which the service's address does not lead to.
    (service,) = [each for each in rendered.of("Service") if each["spec"].get("clusterIP") != "None"]
    assert [port["name"] for port in service["spec"]["ports"]] == ["http"]
    assert [port["name"] for port in api(charts["default"])["ports"]] == ["http"]
    same = render({"admin": {"enabled": True}}).one("NetworkPolicy", "api")["spec"]["ingress"]
    assert same[0]["from"] == same[1]["from"]


def test_the_network_lets_in_the_api_alone_and_out_what_values_name(charts: dict[str, Rendered]) -> None:
    def ports_out(policy: dict[str, Any]) -> set[int]:
        return {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}

    closed, opened = charts["default"].one("NetworkPolicy"), charts["gpu"].one("NetworkPolicy", "api")
    assert [rule["ports"] for rule in closed["spec"]["ingress"]] == [[{"protocol": "TCP", "port": "http"}]]
    assert closed["spec"]["ingress"][0]["from"] == [{"podSelector": {}}]
    assert ports_out(closed) == {53}
    assert ports_out(opened) == {53, 443, 4318}
    assert charts["gpu"].one("NetworkPolicy", "trainer")["spec"]["ingress"] == []


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replicaz": 2}, "replicaz"),
        ({"settings": {"DEEPSYNTH_KEY_FILE": "/keys"}}, "DEEPSYNTH_KEY_FILE"),
        ({"settings": {"DEEPSYNTH_MAX_NEW_TOKENS": 100}}, "settings"),
        ({"gpu": {"enabled": True, "count": 2}}, "gpu"),
        ({"resources": {"limits": {"memory": None}}}, "memory"),
        ({"autoscaling": {"kind": "keda"}}, "prometheusAddress"),
        ({"trainer": {"enabled": True}}, "steps"),
        ({"trainer": {"enabled": True, "steps": [{"name": "train", "args": []}]}}, "args"),
        ({"jobs": {"enabled": True}, "replicas": 2}, "jobs.enabled"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"keys": {"secretName": ""}}, "secretName"),
        ({"networkPolicy": {"from": []}}, "from"),
        ({"ingress": {"enabled": True}}, "ingress"),
        ({"ingress": {"enabled": True, "host": "OCR example"}}, "host"),
        ({"admin": {"enabled": True, "port": 8000}}, "port"),
        ({"settings": {"DEEPSYNTH_ADMIN_PORT": "9000"}}, "DEEPSYNTH_ADMIN_PORT"),
    ],
)
def test_values_that_would_not_work_are_refused_with_the_name_of_the_value(
    values: dict[str, Any], complaint: str
) -> None:
    refused = render(values)
    assert refused.objects == []
    assert complaint in refused.error


def test_the_chart_has_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == project["version"]
    assert chart["version"] == project["version"]
    assert OLDEST in chart["kubeVersion"]
