"""View codes of headers."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.sr._cid_dict import cid_concepts
from pydicom.sr._concepts_dict import concepts
from pydicom.sr._snomed_dict import mapping

from model.clip.header_view import header_view
from model.clip.loop import load_clips
from model.clip.spec import ClipSpec
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.tasks import View
from tests.doubles.loops import write_native


def test_every_view_of_the_standard_is_known() -> None:
    """CID 12226: a view that the node did not know could not contradict."""
    codes = {
        (name, code)
        for scheme, names in cid_concepts[12226].items()
        for name in names
        for code in concepts[scheme][name]  # type: ignore[attr-defined]
    }
    named = {
        "ApicalFourChamber": View.A4C,
        "ApicalTwoChamber": View.A2C,
        "ParasternalLongAxis": View.PLAX,
    }

    for name, code in codes:
        is_short_axis = name.startswith("ParasternalShortAxis")
        view = View.PSAX if is_short_axis else named.get(name, View.OTHER)
        assert header_view(code) is view, name
        if code in mapping["SCT"]:  # its code in SNOMED RT
            assert header_view(mapping["SCT"][code]) is view, name


@pytest.mark.parametrize(
    ("code", "view"), [("G-A19C", View.A4C), ("G-A19B ", View.A2C), ("", None), (None, None), ("T-32000", None)]
)
def test_a_code_of_older_carts_is_known_and_another_thing_is_not(code: str | None, view: View | None) -> None:
    assert header_view(code) is view


def test_a_clip_carries_the_view_of_its_header(tmp_path: Path) -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "399232001", "SCT", "Apical two chamber"
    frames = render(Heart(edv_ml=120.0, esv_ml=50.0), View.A4C, num_frames=20, frame_time_ms=50.0,
                    rng=np.random.default_rng(0))  # fmt: skip

    with_view = write_native(tmp_path / "a.dcm", frames, ViewCodeSequence=Sequence([item]))
    without = write_native(tmp_path / "b.dcm", frames)

    assert load_clips(with_view, ClipSpec()).header_view is View.A2C
    assert load_clips(without, ClipSpec()).header_view is None
