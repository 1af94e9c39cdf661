"""The units for hospitals without containers, as far as no boot allows: systemd reads them, their commands exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dicom_node.settings import load_settings
from tests.binaries import require_binary

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "docker" / "systemd"
NAMES = ("echo-node.service", "echo-worker@0.service")
INSTALLED = "/opt/echo-node/bin"
MOST_EXPOSED = 40
"""Of 100, as `systemd-analyze security` counts; a service without any protection has 96."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with the units, the programs that they name, and systemd's own units."""
    root = tmp_path_factory.mktemp("machine")
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    (root / INSTALLED[1:]).mkdir(parents=True)
    for name in ("dicom-node", "celery"):
        program = root / INSTALLED[1:] / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    shutil.copytree(UNITS, root / "etc/systemd/system")
    shutil.copy(UNITS / "echo-worker@.service", root / "etc/systemd/system" / "echo-worker@0.service")
    return root


def analyse(machine: Path, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `systemd-analyze` in the folder."""
    return subprocess.run(
        [require_binary("systemd-analyze"), verb, f"--root={machine}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", NAMES)
def test_systemd_reads_a_unit_without_a_word(machine: Path, name: str) -> None:
    """A key that it does not know would be ignored, with a warning."""
    ended = analyse(machine, "verify", "--man=no", name)

    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_gives_its_processes_little(machine: Path, name: str) -> None:
    """They read what strangers send."""
    ended = analyse(machine, "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", name)

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_worker_s_unit_runs_the_command_of_its_container() -> None:
    """One way to start a worker, and systemd's own name for it."""
    unit = (UNITS / "echo-worker@.service").read_text()
    (command,) = re.findall(r"^ExecStart=/opt/echo-node/bin/(.+) --hostname=echo-%i@%%h$", unit, flags=re.MULTILINE)
    (contained,) = re.findall(
        r"^CMD \[(.+)\]$", (ROOT / "docker" / "worker.Dockerfile").read_text(), flags=re.MULTILINE
    )

    assert shlex.split(command) == re.findall(r'"([^"]+)"', contained)


def test_the_configuration_to_start_from_is_right_but_for_the_names() -> None:
    """Its folder is the one that systemd makes."""
    settings = load_settings(UNITS / "node.toml")
    state = re.findall(r"^StateDirectory=(.+)$", (UNITS / "echo-node.service").read_text(), flags=re.MULTILINE)

    assert [Path("/var/lib") / name for name in state] == [settings.node.data_dir]
    assert settings.node.require_known_peer


def test_what_the_page_installs_is_here() -> None:
    """Every file of the repository that a command names."""
    commands = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "install.md").read_text(), flags=re.DOTALL)
    named = [word for word in shlex.split("\n".join(commands)) if word.startswith("docker/") or word.endswith(".txt")]

    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
