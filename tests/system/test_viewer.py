"""What others' programs show of a report and its pictures: OHIF in a browser, and dcmtk's rendering as HTML."""

import html
import io
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread

from dicom_node.report.concepts import MEASURED
from dicom_node.report.findings import Measurement
from tests.binaries import free_port, require_binary
from tests.system.chromium import Tab, running_chromium
from tests.system.ohif import open_series, open_study, running_ohif
from tests.system.orthanc import DICOMWEB, running_orthanc
from tests.system.studies import analysed, phantom_study, written

DOCS = Path(__file__).parents[2] / "docs"
"""Its pictures are written anew with ECHO_NODE_DOCS=1."""
LABELS = "svg.svg-layer text"
"""What OHIF writes over an image."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A study, and what the analysis made of it."""

    files: list[Path]
    """Loops and still first, documents last."""
    content: dict[str, Any]
    """The study as `dicom-node analyse --json` prints it."""

    @property
    def report_path(self) -> Path:
        """Return the Structured Report's file."""
        return Path(self.content["reports"][0]["path"])

    def value(self, task: str) -> float:
        """Return a number of the study."""
        (result,) = [one for one in self.content["results"] if one["task"] == task]
        return float(result["value"])


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """A phantom's study, analysed by the shipped ensemble."""
    folder = tmp_path_factory.mktemp("viewer")
    images, out = written(phantom_study(), folder / "in"), folder / "out"
    (content,) = analysed(images, out, "--pictures")["studies"]
    return Reported(files=[*sorted(images.iterdir()), *sorted(out.iterdir())], content=content)


@pytest.fixture(scope="module")
def shown(reported: Reported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """OHIF, with the report open: its PACS holds the study and every document."""
    folder, port = tmp_path_factory.mktemp("pacs"), free_port()
    with (
        running_orthanc(folder, node_ae="NOBODY", node_port=free_port(), dicom_port=port, plugins=(DICOMWEB,)) as pacs,
        running_ohif(pacs.url) as url,
        running_chromium(url) as tab,
    ):
        for file in reported.files:
            pacs.upload(file.read_bytes())
        open_study(tab, url, reported.content["study_instance_uid"])
        open_series(tab, "SR", 9000)
        tab.page.locator(LABELS).first.wait_for()
        tab.wait_until_idle()
        yield tab


def test_ohif_writes_the_numbers_of_the_report_beside_the_loop(shown: Tab, reported: Reported) -> None:
    lines = shown.page.locator(f"{LABELS} tspan").all_text_contents()

    assert f"{MEASURED[Measurement.LVEF].meaning}: {round(reported.value('lvef'), 1):.2f} %" in lines
    assert f"{MEASURED[Measurement.LVEDV].meaning}: {round(reported.value('lvedv')):.2f} ml" in lines
    assert f"{MEASURED[Measurement.LVESV].meaning}: {round(reported.value('lvesv')):.2f} ml" in lines


def test_ohif_finds_no_error_in_the_report(shown: Tab) -> None:
    assert shown.errors == []


def test_no_label_of_ohif_covers_another(shown: Tab) -> None:
    assert shown.page.locator(LABELS).count() == 1


def test_ohif_does_not_offer_to_measure_the_region_itself(shown: Tab) -> None:
    assert shown.page.locator("[data-cy=viewport-notification]").count() == 0


def test_the_report_s_picture_for_the_documents_is_small(shown: Tab, tmp_path: Path) -> None:
    assert pictured(shown, "viewer-ohif.png", tmp_path).stat().st_size < 400_000


def test_ohif_plays_the_attention_over_a_loop(shown: Tab, tmp_path: Path) -> None:
    open_series(shown, "US", 9001)
    shown.page.get_by_text("1/48").wait_for()
    shown.wait_until_idle()

    assert warm_pixels(shown) > 1000
    assert pictured(shown, "viewer-attention.png", tmp_path).stat().st_size < 400_000
    assert shown.errors == []


def test_ohif_shows_the_summary_as_a_picture_and_as_a_document(shown: Tab, tmp_path: Path) -> None:
    open_series(shown, "OT", 9002)
    shown.page.get_by_text("1/1").wait_for()
    shown.wait_until_idle()
    white = bright_share(shown)
    open_series(shown, "DOC", 9003)
    shown.page.locator("object[type='application/pdf']").wait_for()
    shown.wait_until_idle()

    assert white > 0.3
    assert pictured(shown, "viewer-summary.png", tmp_path).stat().st_size < 400_000
    assert shown.errors == []


def pictured(tab: Tab, name: str, folder: Path) -> Path:
    """Return the file of what the window shows: in the documents if they are written anew, else in the folder."""
    picture = (DOCS if os.environ.get("ECHO_NODE_DOCS") else folder) / name
    tab.page.mouse.move(0, 0)
    tab.page.wait_for_timeout(1000)  # what lay under the pointer fades
    tab.page.screenshot(path=picture)
    return picture


def canvas(tab: Tab) -> NDArray[np.uint8]:
    """Return what the viewport shows: (H, W, 3)."""
    picture = tab.page.locator("canvas.cornerstone-canvas").first.screenshot()
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def warm_pixels(tab: Tab) -> int:
    """Return how many pixels are clearly more red than blue: the loops are grey."""
    pixels_HWC = canvas(tab).astype(int)
    return int((pixels_HWC[..., 0] - pixels_HWC[..., 2] > 40).sum())


def bright_share(tab: Tab) -> float:
    """Return the share of pixels that are as bright as paper."""
    return float((canvas(tab).min(axis=2) > 240).mean())


def test_dcmtk_renders_every_number_with_its_unit_and_every_text(reported: Reported) -> None:
    command = [require_binary("dsr2html"), str(reported.report_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    page = " ".join(html.unescape(re.sub("<[^>]*>", " ", done.stdout)).split())

    assert done.returncode == 0, done.stderr
    assert re.findall("^[EF]:.*", done.stderr, flags=re.MULTILINE) == []
    report = dcmread(reported.report_path)
    assert [one for one in numbers(report) if ": ".join(one) not in page and " = ".join(one) not in page] == []
    assert [one for one in texts(report) if " ".join(one.split()) not in page] == []


def numbers(item: Dataset) -> Iterator[tuple[str, str]]:
    """Yield the name of every number below an item, and the number with its unit as dcmtk writes it."""
    for measured in item.get("MeasuredValueSequence", ()):
        unit = measured.MeasurementUnitsCodeSequence[0].CodeValue
        yield item.ConceptNameCodeSequence[0].CodeMeaning, f"{measured.NumericValue} {unit}"
    for child in item.get("ContentSequence", ()):
        yield from numbers(child)


def texts(item: Dataset) -> Iterator[str]:
    """Yield every text below an item."""
    if "TextValue" in item:
        yield item.TextValue
    for child in item.get("ContentSequence", ()):
        yield from texts(child)
