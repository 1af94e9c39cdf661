"""What the documents say of commands, configuration and DICOM is what the code does."""

import re
import tomllib
from pathlib import Path

import pytest
import typer.main

from dicom_node import scp
from dicom_node.cli import app
from dicom_node.conformance import statement
from dicom_node.settings import settings_from
from model.clip.select import MIN_FRAMES
from trainer.cli import app as trainer_app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_names_every_command_and_no_other() -> None:
    """The table of commands is the one that the program has."""
    rows = [line.split("|")[1] for line in _readme().splitlines() if line.startswith("| `dicom-node")]
    named = {word for row in rows for word in re.findall(r"`dicom-node ([a-z-]+)", row)}

    assert named == set(typer.main.get_group(app).commands)


def test_the_page_on_training_names_every_command_and_no_other() -> None:
    """The table of commands is the one that the program has."""
    page = (ROOT / "docs" / "training.md").read_text()

    assert set(re.findall(r"^\| `trainer ([a-z-]+)", page, flags=re.MULTILINE)) == set(
        typer.main.get_group(trainer_app).commands
    )


def test_the_readme_names_every_make_target_that_it_needs() -> None:
    """And each one is a target."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    assert set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)`", _readme(), flags=re.MULTILINE)) >= {("demo", "")}
    assert targets - {"help"} == {
        "".join(pair) for pair in re.findall(r"^make ([a-z]+)|`make ([a-z]+)`", _readme(), flags=re.MULTILINE)
    }


def test_the_readme_s_configuration_is_right() -> None:
    """A user starts from this sample."""
    (sample,) = re.findall(r"```toml\n(.*?)```", _readme(), flags=re.DOTALL)

    settings = settings_from(tomllib.loads(sample))

    assert settings.node.require_known_peer
    assert settings.peer("pacs").receives_reports


def test_conformance_lists_every_status_of_a_c_store() -> None:
    """The statuses that the SCP answers with, no more and no fewer."""
    listed = re.findall(r"^\| 0x([0-9A-F]{4}) \|", _conformance(), flags=re.MULTILINE)

    assert sorted(int(text, 16) for text in listed) == sorted(scp.StoreStatus)


def test_conformance_lists_every_rejection() -> None:
    """Ours; 2, 3, 2 is pynetdicom's own."""
    listed = {
        tuple(map(int, row)) for row in re.findall(r"^\| (\d), (\d), (\d) \|", _conformance(), flags=re.MULTILINE)
    }

    assert listed == {rejection.value for rejection in scp.Rejection} | {(2, 3, 2)}


def test_conformance_is_what_the_command_prints() -> None:
    """`make docs` writes it."""
    assert _conformance() == statement()
    assert f"of {MIN_FRAMES} frames or more" in _conformance()


def test_every_fault_of_the_page_on_reliability_names_tests_that_exist() -> None:
    """No row without a test; a test that is renamed or moved takes its rows along."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| fault |")]
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)

    assert [row for row in rows if "::test_" not in row] == []
    assert page.count("::") == len(named) > 0
    assert [f"{path}::{name}" for path, name in named if f"\ndef {name}(" not in (ROOT / path).read_text()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_document_s_links_lead_somewhere(path: Path) -> None:
    """Links into the repository, seen from the document."""
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", path.read_text())

    assert all((path.parent / link).exists() for link in links), links


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_link_to_a_heading_finds_it(path: Path) -> None:
    """In the words that GitHub makes of the heading."""
    links = re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", path.read_text())

    assert [
        (name, heading) for name, heading in links if heading not in _headings(path.parent / name if name else path)
    ] == []


def _headings(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _readme() -> str:
    return (ROOT / "README.md").read_text()


def _conformance() -> str:
    return (ROOT / "docs" / "conformance.md").read_text()
