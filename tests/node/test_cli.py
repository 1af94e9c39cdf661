"""The command line as scripts use it: exit codes, one line an error, JSON alone."""

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pytest
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from dicom_node import completion
from dicom_node.cli import main
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.store import InstanceStore
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock
from tests.doubles.pacs import running_pacs

Ended = subprocess.CompletedProcess[str]
Run = Callable[..., Ended]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of a node that never ran."""
    path = tmp_path / "node.toml"
    path.write_text(f"[node]\ndata_dir = {json.dumps(str(tmp_path / 'var'))}\n")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `dicom-node` with these arguments."""

    def run(*arguments: str | Path, **variables: str) -> Ended:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ECHO_NODE")}
        return subprocess.run(
            [sys.executable, "-m", "dicom_node", *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**kept, **variables},
            cwd=tmp_path,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def filled(config: Path, tmp_path: Path) -> Path:
    """The configuration of a node that holds one study whose analysis failed."""
    sessions = open_ledger(f"sqlite:///{tmp_path / 'var' / 'ledger.sqlite'}")
    clock = ManualClock()
    arrivals = Arrivals(sessions, InstanceStore(tmp_path / "var", min_free_bytes=0), clock)
    study_id = arrivals.send()
    clock.pass_by(60)
    completion.tick(sessions, clock, timedelta(seconds=30))
    with sessions.begin() as session:
        session.connection().exec_driver_sql(f"UPDATE study SET state='failed', error='no heart' WHERE id={study_id}")
    close_ledger(sessions)
    return config


def assert_one_line(ended: Ended, code: int, *words: str) -> None:
    """Assert the exit code, and an error of one line with these words."""
    assert ended.returncode == code, ended.stderr
    assert ended.stdout == ""
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    for word in words:
        assert word in ended.stderr


def test_a_right_configuration_ends_with_0(run: Run, config: Path) -> None:
    assert run("check-config", "--config", config).returncode == 0


def test_the_version_is_that_of_the_package(run: Run) -> None:
    said = run("--version")

    assert (said.returncode, said.stdout) == (0, f"{version('echo-ai-node')}\n")


@pytest.mark.parametrize("command", ["echo", "pull"])
def test_a_shell_completes_commands_and_peers(config: Path, command: str) -> None:
    config.write_text(
        config.read_text()
        + "".join(
            f'[[peers]]\nname = "{name}"\nae_title = "{name}"\nhost = "127.0.0.1"\nport = 104\n'
            for name in ("archive", "attic", "pacs")
        )
    )

    def completed(line: str, path: Path) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        script = Path(sys.executable).with_name("dicom-node")  # a shell knows it by this name
        variables = {"_DICOM_NODE_COMPLETE": "complete_bash", "ECHO_NODE_CONFIG": str(path), **words}
        said = subprocess.run([script], capture_output=True, text=True, env=os.environ | variables, check=True)
        assert said.stderr == ""
        return said.stdout.split()

    assert completed(f"dicom-node {command[:3]}", config) == [command]
    assert completed(f"dicom-node {command} a", config) == ["archive", "attic"]
    assert completed(f"dicom-node {command} a", config.parent / "gone.toml") == []


def test_every_mistake_is_said_with_its_key(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text('[node]\nport = 99999\nae_title = "far too long an AE title"\n[studdy]\nquiet_seconds = 1\n')
    ended = run("check-config", "--config", path)

    assert ended.returncode == 2
    for key in ("node.port", "node.ae_title", "studdy"):
        assert key in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_file_that_cannot_be_used_is_said_with_its_key(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    pair = f'certificate = "{tmp_path}/gone.pem"\nkey = "{tmp_path}/gone.key"\n'
    path.write_text(f'[node.tls]\n{pair}ca = "{tmp_path}/gone.ca"\n[web]\n{pair}')
    ended = run("check-config", "--config", path)

    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 3
    for key in ("node.tls.certificate", "node.tls.ca", "web.certificate"):
        assert key in ended.stderr


@pytest.mark.parametrize("command", ["studies", "serve", "check-config"])
def test_a_wrong_value_in_the_environment_names_its_key(run: Run, config: Path, command: str) -> None:
    ended = run(command, "--config", config, ECHO_NODE__STUDY__QUIET_SECONDS="-1")

    assert_one_line(ended, 2, "study.quiet_seconds")


def test_a_configuration_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    assert_one_line(run("studies", "--config", tmp_path / "gone.toml"), 2, "gone.toml")


@pytest.mark.parametrize("arguments", [("no-such-command",), ("studies", "--no-such-option"), ("study",), ("echo",)])
def test_a_wrong_call_ends_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert_one_line(run(*arguments), 2)


def test_help_shows_every_command(run: Run) -> None:
    ended = run("--help")

    assert ended.returncode == 0
    for command in (
        "demo",
        "serve",
        "analyse",
        "studies",
        "study",
        "retry",
        "reprocess",
        "purge",
        "echo",
        "check-config",
    ):
        assert command in ended.stdout


def test_json_is_alone_on_standard_output(run: Run, filled: Path) -> None:
    studies = run("studies", "--json", "--config", filled)
    study = run("study", STUDY, "--json", "--config", filled)

    assert studies.returncode == study.returncode == 0
    assert json.loads(studies.stdout) == [json.loads(study.stdout)]
    assert json.loads(study.stdout)["study_instance_uid"] == STUDY


def test_the_conformance_statement_is_printed_for_people_and_for_programs(run: Run) -> None:
    """It needs no configuration: it says what the program can do."""
    page, tables = run("conformance"), run("conformance", "--json")

    assert page.stdout.startswith("# DICOM conformance statement")
    assert {"SCU", "SCP"} == {one["role"] for one in json.loads(tables.stdout)["supported"]}
    assert (page.returncode, page.stderr, tables.returncode, tables.stderr) == (0, "", 0, "")


def test_studies_are_listed_by_state(run: Run, filled: Path) -> None:
    failed = run("studies", "--state", "failed", "--json", "--config", filled)
    delivered = run("studies", "--state", "delivered", "--json", "--config", filled)

    assert len(json.loads(failed.stdout)) == 1
    assert json.loads(delivered.stdout) == []


def test_people_read_tables(run: Run, filled: Path) -> None:
    ended = run("study", STUDY, "--config", filled, COLUMNS="200")

    assert ended.returncode == 0
    assert STUDY in ended.stdout
    assert "failed: no heart" in ended.stdout


def test_a_study_that_is_not_there_ends_with_1(run: Run, config: Path) -> None:
    assert_one_line(run("study", "1.2.3", "--config", config), 1, "1.2.3")


def test_what_is_no_uid_ends_with_2(run: Run, config: Path) -> None:
    assert_one_line(run("study", "../etc", "--config", config), 2, "../etc")


def test_retry_takes_up_a_failed_study_once(run: Run, filled: Path) -> None:
    first = run("retry", STUDY, "--config", filled)
    state = json.loads(run("study", STUDY, "--json", "--config", filled).stdout)["state"]
    second = run("retry", STUDY, "--config", filled)

    assert first.returncode == 0
    assert state == "analysing"
    assert_one_line(second, 1, "not failed")


def test_retry_takes_up_every_study_that_failed(run: Run, filled: Path) -> None:
    first = run("retry", "--all-failed", "--config", filled)
    again = run("retry", "--all-failed", "--config", filled)

    assert (first.returncode, first.stdout) == (0, f"study {STUDY} is analysing\n")
    assert (again.returncode, again.stdout) == (0, "")
    assert_one_line(run("retry", "--config", filled), 2, "--all-failed")
    assert_one_line(run("retry", STUDY, "--all-failed", "--config", filled), 2, "--all-failed")


def test_reprocess_opens_a_study_once(run: Run, filled: Path) -> None:
    first = run("reprocess", STUDY, "--config", filled)
    seen = json.loads(run("study", STUDY, "--json", "--config", filled).stdout)
    second = run("reprocess", STUDY, "--config", filled)

    assert (first.returncode, first.stdout) == (0, f"study {STUDY} is analysing\n")
    assert (seen["state"], seen["revision"]) == ("analysing", 2)
    assert_one_line(second, 1, "still being analysed")


@pytest.fixture
def old(filled: Path, tmp_path: Path) -> Path:
    """The same study, delivered long ago, and a file without a row."""
    sessions = open_ledger(f"sqlite:///{tmp_path / 'var' / 'ledger.sqlite'}")
    with sessions.begin() as session:
        delivered = (
            "UPDATE study SET state='delivered', error=NULL, delivered_at='2020-01-01', last_received_at='2020-01-01'"
        )
        session.connection().exec_driver_sql(delivered)
    close_ledger(sessions)
    orphan = tmp_path / "var" / "reports" / "1.2.7.dcm"
    orphan.write_bytes(b"orphan")
    os.utime(orphan, (0, 0))
    return filled


def test_purge_names_what_it_removes_and_a_dry_run_removes_nothing(run: Run, old: Path, tmp_path: Path) -> None:
    named = run("purge", "--dry-run", "--json", "--config", old)
    kept = [*(tmp_path / "var" / "instances").rglob("*.dcm")]
    removed = run("purge", "--json", "--config", old)
    again = run("purge", "--config", old)

    document = json.loads(named.stdout)
    assert json.loads(removed.stdout) == {**document, "dry_run": False}
    assert [(one["study_instance_uid"], one["delivered_at"]) for one in document["studies"]] == [
        (STUDY, "2020-01-01T00:00:00.000Z")
    ]
    assert [one["path"] for one in document["files"]] == ["reports/1.2.7.dcm"]
    assert document["bytes"] == sum(one["bytes"] for one in [*document["studies"], *document["files"]]) > 0
    assert len(kept) == 1
    assert [*(tmp_path / "var" / "instances").rglob("*.dcm")] == []
    assert (again.returncode, again.stdout) == (0, "removed: 0 bytes, of 0 studies and 0 files\n")


def test_purge_prints_a_table_for_people(run: Run, old: Path) -> None:
    ended = run("purge", "--dry-run", "--config", old, COLUMNS="200")

    assert ended.returncode == 0
    assert STUDY in ended.stdout
    assert "reports/1.2.7.dcm" in ended.stdout
    assert "would be removed: " in ended.stdout


def test_purge_says_what_cannot_be_removed_and_ends_with_1(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        mock.patch("sys.argv", ["dicom-node", "purge", "--json", "--config", str(old)]),
        mock.patch("shutil.rmtree", side_effect=PermissionError(errno.EACCES, "Permission denied")),  # root may all
        pytest.raises(SystemExit) as ended,
    ):
        main()

    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "Permission denied" in json.loads(said.out)["studies"][0]["error"]
    assert len(said.err.splitlines()) == 1
    assert STUDY in said.err


def peer(config: Path, port: int) -> Path:
    """Add a peer `pacs` on this port."""
    config.write_text(
        config.read_text() + f'[[peers]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {port}\n'
    )
    return config


def test_echo_says_that_a_peer_answers(run: Run, config: Path) -> None:
    with running_pacs(classes=[Verification]) as pacs:
        ended = run("echo", "pacs", "--config", peer(config, pacs.port))

    assert ended.returncode == 0
    assert "pacs" in ended.stdout


def test_echo_to_a_closed_port_ends_with_1(run: Run, config: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    assert_one_line(run("echo", "pacs", "--config", peer(config, port)), 1, str(port))


def test_echo_to_a_peer_that_is_not_configured_ends_with_2(run: Run, config: Path) -> None:
    assert_one_line(run("echo", "nobody", "--config", peer(config, 104)), 2, "nobody", "pacs")


def test_only_debug_shows_a_traceback(run: Run, tmp_path: Path) -> None:
    ended = run("--debug", "studies", "--config", tmp_path / "gone.toml")

    assert ended.returncode != 0
    assert "Traceback" in ended.stderr


def test_a_ledger_that_cannot_be_opened_ends_with_1(run: Run, tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file where the folder should be")
    path = tmp_path / "node.toml"
    path.write_text(f"[node]\ndata_dir = {json.dumps(str(tmp_path / 'var'))}\n")

    assert_one_line(run("studies", "--config", path), 1, "the ledger cannot be opened")
    assert_one_line(run("serve", "--config", path), 1, "node.data_dir")


def test_analyse_of_a_path_that_is_not_there_ends_with_2(run: Run, tmp_path: Path) -> None:
    assert_one_line(run("analyse", tmp_path / "gone", "--out", tmp_path / "out"), 2, "gone")


def test_analyse_with_an_ensemble_that_is_not_there_ends_with_1(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no DICOM")

    assert_one_line(run("analyse", file, "--out", tmp_path / "out", "--ensemble", tmp_path / "gone"), 1, "gone")


@pytest.mark.parametrize("name", ["gone/sheet.png", "notes.txt/sheet.png", "sheet.jpg", "folder.png"])
def test_a_contact_sheet_that_cannot_be_written_ends_with_2_before_anything_is_analysed(
    run: Run, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no DICOM")
    (tmp_path / "folder.png").mkdir()

    ended = run("analyse", file, "--out", tmp_path / "out", "--contact-sheet", tmp_path / name)

    assert_one_line(ended, 2, "--contact-sheet", Path(name).parts[0])
    assert not (tmp_path / "out").exists()


def test_a_contact_sheet_in_a_folder_that_may_not_be_written_to_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["analyse", tmp_path, "--out", tmp_path / "out", "--contact-sheet", tmp_path / "sheet.png"]
    with (
        mock.patch("sys.argv", ["dicom-node", *map(str, arguments)]),
        mock.patch("os.access", lambda _path, mode: mode != os.W_OK),  # root may write everywhere
        pytest.raises(SystemExit) as ended,
    ):
        main()

    assert ended.value.code == 2
    assert "--contact-sheet" in capsys.readouterr().err
