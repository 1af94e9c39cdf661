"""The monitors of compose.yaml find the node, ask for what it exposes, and call people when they should."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.settings import load_settings
from dicom_node.store import InstanceStore
from tests.binaries import free_port, require_binary
from tests.exposed import exposed
from tests.node.sites import TOKEN, page_settings, serving_page
from tests.patience import wait_until
from tests.scrape import Scrape, parsed

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
GRAFANA = DOCKER / "grafana"
MONITORS = ("prometheus", "grafana")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """compose.yaml as Docker reads it."""
    return loaded(DOCKER / "compose.yaml")


@pytest.fixture(scope="module")
def prometheus() -> dict[str, Any]:
    """prometheus.yml."""
    return loaded(DOCKER / "prometheus.yml")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """The dashboard."""
    content: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "echo-node.json").read_text())
    return content


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    """Everything that node and workers expose."""
    return parsed(exposed(tmp_path_factory.mktemp("node")))


def loaded(path: Path) -> dict[str, Any]:
    """Return a YAML file."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    return [rule for group in loaded(DOCKER / "alerts.yml")["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> str:
    """Return what promtool says of something that is right."""
    done = subprocess.run(
        [require_binary("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_right_and_every_alert_comes_when_it_should() -> None:
    """And no other: alerts_test.yml has a node in order, and for each alert what raises it."""
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(DOCKER / "alerts.yml"))
    promtool("test", "rules", str(Path(__file__).parent / "alerts_test.yml"))


def test_every_alert_has_a_test_in_which_it_comes() -> None:
    tests = (Path(__file__).parent / "alerts_test.yml").read_text()
    raised = {
        one["alertname"]
        for test in yaml.safe_load(tests)["tests"]
        for one in test.get("alert_rule_test", [])
        if one["exp_alerts"]
    }

    assert {rule["alert"] for rule in rules()} - raised == {"EchoNodeDown"}  # it is in the one of both
    assert 'alertname="EchoNodeDown", alertstate="firing"' in tests


def test_every_alert_names_a_heading_that_says_what_to_do() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()

    assert [rule["alert"] for rule in rules() if f"\n## {rule['annotations']['page']}\n" not in page] == []


def test_what_rules_and_dashboard_ask_for_is_exposed(dashboard: dict[str, Any], samples: Scrape) -> None:
    """By its name, and with labels of these values: Prometheus finds nothing in silence."""
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for rule in rules()]
    found = {name for name, _ in samples.samples}

    for expression in asked:
        for name, matchers in re.findall(r"(echo_node_\w+)(?:\{([^}]*)\})?", expression):
            assert name in found, expression
            for label, operator, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', matchers):
                values = {dict(labels)[label] for one, labels in samples.samples if one == name}
                wanted = set(value.split("|")) if "(" not in value else expanded(value)
                assert operator in ("=", "=~", "!=")
                assert wanted <= values, f"{label} of {expression}"
    assert len(asked) > 40


def expanded(pattern: str) -> set[str]:
    """Return the values of `prefix_(one|two)`."""
    prefix, _, rest = pattern.partition("(")
    return {prefix + one for one in rest.rstrip(")").split("|")}


def test_every_metric_of_the_node_is_on_the_dashboard_or_in_a_rule(dashboard: dict[str, Any], samples: Scrape) -> None:
    """What nobody sees need not be counted."""
    seen = json.dumps(dashboard) + (DOCKER / "alerts.yml").read_text()
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name, _ in samples.samples}

    assert {name for name in families if name not in seen} == set()


def test_the_dashboard_shows_first_how_long_a_report_takes(dashboard: dict[str, Any]) -> None:
    """And every panel asks the data source that is provisioned."""
    (source,) = loaded(GRAFANA / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
    panels = dashboard["panels"]

    assert "echo_node_last_image_to_delivered_seconds" in panels[0]["targets"][0]["expr"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert overlapping([panel["gridPos"] for panel in panels]) == []


def overlapping(places: list[dict[str, int]]) -> list[tuple[int, int]]:
    """Return the cells of Grafana's grid (24 wide) that more than one panel covers."""
    cells = [
        (x, y)
        for one in places
        for x in range(one["x"], one["x"] + one["w"])
        for y in range(one["y"], one["y"] + one["h"])
    ]
    assert all(x < 24 for x, _ in cells)
    return [cell for cell in set(cells) if cells.count(cell) > 1]


def test_the_monitors_are_pinned_watched_and_reached_from_this_machine_alone(compose: dict[str, Any]) -> None:
    for name in MONITORS:
        service = compose["services"][name]
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", service["image"])
        assert int(service["user"].split(":")[0]) > 0
        assert "healthcheck" in service
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_monitors_have_the_token_that_node_and_workers_ask_for(compose: dict[str, Any]) -> None:
    given = {"node": "ECHO_NODE__WEB__TOKEN", "prometheus": "ECHO_NODE_TOKEN", "grafana": "GF_SECURITY_ADMIN_PASSWORD"}

    values = {compose["services"][service]["environment"][name] for service, name in given.items()}
    assert values == {"${ECHO_NODE_TOKEN:?set it}"}


def test_prometheus_starts_with_the_token_in_a_file_of_its_own(
    compose: dict[str, Any], prometheus: dict[str, Any], tmp_path: Path
) -> None:
    """The entry point is run as it stands, with another folder and another program."""
    service = compose["services"]["prometheus"]
    (place,) = {job["authorization"]["credentials_file"] for job in prometheus["scrape_configs"]}
    folder = str(Path(place).parent)
    program = tmp_path / "prometheus"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    shell, option, script, name = service["entrypoint"]
    script = script.replace("$$", "$").replace(folder, str(tmp_path)).replace("/bin/prometheus", str(program))
    started = subprocess.run(
        [shell, option, script, name, *service["command"]],
        env={"ECHO_NODE_TOKEN": TOKEN}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert service["tmpfs"] == [f"{folder}:uid={service['user'].split(':')[0]},mode=0700"]
    assert (tmp_path / Path(place).name).read_text() == TOKEN
    assert started.stdout.split() == service["command"]


def test_prometheus_asks_node_and_workers_where_they_answer(
    compose: dict[str, Any], prometheus: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHO_NODE__WEB__TOKEN", TOKEN)
    settings = load_settings(DOCKER / "node.toml")
    node, worker = prometheus["scrape_configs"]

    assert node["static_configs"] == [{"targets": [f"node:{settings.web.port}"]}]
    (found,) = worker["dns_sd_configs"]
    assert (found["names"], found["port"]) == (["worker"], settings.worker.metrics_port)
    called = [name for name, service in compose["services"].items() if "networks" in service]
    assert called == ["first-worker", "second-worker"]
    assert all(found["names"] == compose["services"][name]["networks"]["default"]["aliases"] for name in called)
    assert settings.worker.metrics_host == "0.0.0.0"


@contextmanager
def running_prometheus(folder: Path, config: dict[str, Any]) -> Iterator[httpx.Client]:
    """Run a Prometheus with this configuration until the block ends; give what asks it."""
    port = free_port()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DOCKER / "alerts.yml", folder)
    promtool("check", "config", str(folder / "prometheus.yml"))
    command = [
        *(require_binary("prometheus"), f"--config.file={folder / 'prometheus.yml'}"),
        *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, cwd=folder)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            wait_until(lambda: answers(client, process))
            yield client
    finally:
        process.terminate()
        process.wait(30)


def answers(client: httpx.Client, process: subprocess.Popen[bytes]) -> bool:
    """Return whether it is ready; fail if it has ended."""
    assert process.poll() is None
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def value(client: httpx.Client, expression: str) -> float | None:
    """Return what Prometheus answers; None: nothing."""
    result = client.get("/api/v1/query", params={"query": expression}).json()["data"]["result"]
    return float(result[0]["value"][1]) if result else None


@pytest.mark.parametrize(("token", "is_up"), [(TOKEN, 1.0), ("another-token-of-the-same-length", 0.0)])
def test_a_real_prometheus_reads_the_page_with_the_token_of_its_file(
    token: str, is_up: float, tmp_path: Path, prometheus: dict[str, Any]
) -> None:
    secret = tmp_path / "token"
    secret.write_text(f"{token}\n")
    (job, *_) = prometheus["scrape_configs"]
    settings = page_settings(tmp_path / "node", "redis://127.0.0.1:1/0", token=TOKEN)
    store = InstanceStore(tmp_path / "node", min_free_bytes=0)
    sessions = open_ledger(settings.database_url)
    with serving_page(settings, sessions, store, 1) as site:
        here = {
            **job,
            "authorization": {"credentials_file": str(secret)},
            "static_configs": [{"targets": [f"127.0.0.1:{site.port}"]}],
        }
        often = {"scrape_interval": "1s", "scrape_timeout": "1s"}
        with running_prometheus(tmp_path, {**prometheus, "global": often, "scrape_configs": [here]}) as client:
            wait_until(lambda: value(client, 'up{job="echo-node"}') is not None)
            assert value(client, 'up{job="echo-node"}') == is_up
            assert value(client, 'echo_node_studies{state="failed"}') == (0.0 if is_up else None)
    close_ledger(sessions)
