"""The containers, as far as no engine allows: every name in them means something in this repository."""

import json
import re
import shlex
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_node.settings import ENV_PREFIX, Settings, load_settings
from worker.app import QUEUE

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
SAMPLE = "a-sample-of-secrets"
WORKERS = ("first-worker", "second-worker")
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Return compose.yaml as Docker reads it."""
    parsed: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return parsed


@pytest.fixture
def settings(compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the configuration that node and worker of compose.yaml start with."""
    for name, value in compose["services"]["node"]["environment"].items():
        if name.startswith(ENV_PREFIX):
            monkeypatch.setenv(name, re.sub(r"\$\{\w+:\?[^}]*\}", SAMPLE, value))
    return load_settings(DOCKER / "node.toml")


def test_the_node_starts_with_the_configuration_of_compose(settings: Settings) -> None:
    """Every key of the file and of the environment is one that the settings know."""
    assert settings.node.require_known_peer
    assert settings.broker.url.get_secret_value().startswith("redis://redis:")
    assert settings.web.token.get_secret_value() == SAMPLE
    assert settings.database_url == f"postgresql+psycopg://echo:{SAMPLE}@postgres/echo"


def test_the_worker_has_the_node_s_configuration_and_files(compose: dict[str, Any]) -> None:
    """A worker that reads another configuration or folder finds no instance."""
    node = compose["services"]["node"]

    for name in WORKERS:
        assert node["environment"] == compose["services"][name]["environment"]
        assert node["volumes"] == compose["services"][name]["volumes"]


def test_nothing_is_written_but_to_volumes_and_nobody_gains_a_right(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("secrets"), "Compose copies them into the file system, which is read-only"


def test_who_has_no_user_of_an_image_of_ours_is_no_root(compose: dict[str, Any]) -> None:
    """Ours say it in their Dockerfiles; the PACS of the example has no other."""
    of_others = {name for name, service in compose["services"].items() if "image" in service}

    assert {name for name in of_others if "user" not in compose["services"][name]} == {"orthanc"}


def test_the_data_of_the_node_lies_on_a_volume(compose: dict[str, Any], settings: Settings) -> None:
    """What is kept outlives the container."""
    targets = [volume.split(":")[1] for volume in compose["services"]["node"]["volumes"]]

    assert str(settings.node.data_dir) in targets
    assert compose["services"]["node"]["environment"]["ECHO_NODE_CONFIG"] in targets


def test_the_published_ports_are_those_that_the_node_listens_on(compose: dict[str, Any], settings: Settings) -> None:
    """And they are published on the host's loopback address alone."""
    ports = [port.rsplit(":", 2) for port in compose["services"]["node"]["ports"]]

    assert {int(inner) for _, _, inner in ports} == {settings.node.port, settings.web.port}
    assert {address for address, _, _ in ports} == {"127.0.0.1"}


def test_node_and_pacs_know_each_other(compose: dict[str, Any], settings: Settings) -> None:
    """AE titles, hosts and ports agree on both sides, and the PACS may call from its network."""
    pacs = settings.peer("pacs")
    orthanc = json.loads((DOCKER / "orthanc.json").read_text())
    subnet = compose["networks"]["default"]["ipam"]["config"][0]["subnet"]

    assert (pacs.ae_title, pacs.port) == (orthanc["DicomAet"], orthanc["DicomPort"])
    assert pacs.host in compose["services"]
    assert orthanc["DicomModalities"]["node"] == [settings.node.ae_title, "node", settings.node.port]
    assert "node" in compose["services"]
    assert pacs.addresses == (ip_network(subnet),)


def test_no_secret_has_a_value_in_compose(compose: dict[str, Any]) -> None:
    """Passwords and tokens come from outside, and their absence stops the start."""
    secrets = [
        value
        for service in compose["services"].values()
        for name, value in service.get("environment", {}).items()
        if re.search("PASSWORD|TOKEN|DATABASE__URL", name)
    ]

    assert len(secrets) == 9
    assert all(re.search(r"\$\{\w+:\?", value) for value in secrets)


def test_the_services_of_the_broker_and_the_ledger_are_there(compose: dict[str, Any], settings: Settings) -> None:
    """Every host that the configuration names is a service, with a check of its health."""
    urls = (settings.broker.url.get_secret_value(), settings.database_url)
    hosts = {re.split(r"[:/]", url.split("://")[1].rsplit("@")[-1])[0] for url in urls}

    assert hosts == {"redis", "postgres"}
    assert all("healthcheck" in compose["services"][host] for host in (*hosts, *WORKERS, "node", "orthanc"))


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_asks_for_a_gpu(compose: dict[str, Any], name: str) -> None:
    """Without the reservation the container sees none, and computes on the CPU in silence."""
    (device,) = compose["services"][name]["deploy"]["resources"]["reservations"]["devices"]
    (number,) = device.pop("device_ids")

    assert device == {"driver": "nvidia", "capabilities": ["gpu"]}
    assert re.sub(r"\$\{\w+:-(\d)\}", r"\1", number) == "0"


def test_what_compose_builds_and_mounts_exists(compose: dict[str, Any]) -> None:
    """Docker would make a folder where a file is missing."""
    for service in compose["services"].values():
        if "build" in service:
            context = (DOCKER / service["build"]["context"]).resolve()
            assert (context / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DOCKER / source).exists(), source


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_dockerfile_copies_exists_and_is_in_the_context(path: Path) -> None:
    """.dockerignore leaves out all but what is named."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [source for words in _instructions(path, "COPY") if "--from=build" not in words for source in words[:-1]]

    assert copied
    assert all((ROOT / source).exists() and source in allowed for source in copied), copied


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_copies_every_package_of_the_wheel(path: Path) -> None:
    """A package that is missing in the context is missing in the wheel, without a word."""
    packages = _pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = {source for words in _instructions(path, "COPY") for source in words[:-1]}

    assert set(packages) <= copied


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_container_does_not_run_as_root(path: Path) -> None:
    """Both users have one number, since they share files of mode 0600."""
    assert _instructions(path, "USER") == [["echo-node"]]
    assert "useradd --uid 10001" in path.read_text()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_container_installs_extras_that_exist(path: Path) -> None:
    """Pip only warns of an unknown extra."""
    extras = re.findall(r"whl\)\[([a-z0-9,]+)\]", path.read_text())

    assert extras
    assert set(extras[0].split(",")) <= set(_pyproject()["project"]["optional-dependencies"])


def test_the_node_s_command_is_a_script_of_the_package() -> None:
    """`dicom-node serve`, as pyproject names it."""
    command = _command(DOCKER / "node.Dockerfile")

    assert command == ["dicom-node", "serve"]
    assert command[0] in _pyproject()["project"]["scripts"]


def test_the_worker_s_command_serves_the_node_s_queue() -> None:
    """One process a GPU, on the queue that the node rings on."""
    command = _command(DOCKER / "worker.Dockerfile")

    assert command[:4] == ["celery", "-A", "worker.app", "worker"]
    assert command[command.index("-Q") + 1] == QUEUE
    assert {"--pool=prefork", "--concurrency=1"} <= set(command)


def _instructions(path: Path, name: str) -> list[list[str]]:
    """Return the words of each instruction of this name."""
    text = path.read_text().replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith(f"{name} ")]


def _command(path: Path) -> list[str]:
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("CMD ")]
    command: list[str] = json.loads(line.removeprefix("CMD "))
    return command


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
