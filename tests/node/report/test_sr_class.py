"""A report as another SOP class: as valid, the same words, another instance."""

import io
from dataclasses import replace

import pytest
from pydicom import Dataset, dcmread

from dicom_node.report.sr_class import SR_CLASSES, WRITTEN_AS, SrClass, candidates, in_class
from dicom_node.report.text import render_text
from tests.node.report.samples import EMPTY, MEASURED, PREDECESSOR, pictures, report
from tests.system.validators import assert_valid_report

REPORTS = {
    "with pictures": report(pictures=pictures()),
    "empty": report(EMPTY),
    "revision": report(MEASURED, revision=2, predecessor=PREDECESSOR, is_complete=False),
}


def stored(name: str) -> Dataset:
    """Return the report as the node keeps it."""
    return dcmread(io.BytesIO(REPORTS[name].part10))


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("sr_class", SR_CLASSES)
def test_it_is_valid_and_says_the_same(name: str, sr_class: SrClass) -> None:
    changed = in_class(stored(name), SR_CLASSES[sr_class])

    assert_valid_report(changed, pixelmed=(name, sr_class) == ("with pictures", "comprehensive3d"))
    assert render_text(changed) == render_text(stored(name))
    assert changed.SOPClassUID == changed.file_meta.MediaStorageSOPClassUID == SR_CLASSES[sr_class]
    assert changed.SOPInstanceUID == changed.file_meta.MediaStorageSOPInstanceUID
    assert (changed.SOPInstanceUID == stored(name).SOPInstanceUID) == (SR_CLASSES[sr_class] == WRITTEN_AS)


def test_a_revision_names_the_predecessor_as_the_same_peer_has_it() -> None:
    first = REPORTS["with pictures"]
    predecessor = replace(PREDECESSOR, sop_instance_uid=first.sop_instance_uid)
    second = report(revision=2, predecessor=predecessor).part10

    for sop_class_uid in SR_CLASSES.values():
        sent = in_class(stored("with pictures"), sop_class_uid)
        (study,) = in_class(dcmread(io.BytesIO(second)), sop_class_uid).PredecessorDocumentsSequence
        (named,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert named.ReferencedSOPClassUID == sent.SOPClassUID
        assert named.ReferencedSOPInstanceUID == sent.SOPInstanceUID


def test_a_peer_is_offered_its_class_first_and_then_the_others() -> None:
    assert candidates("comprehensive3d") == tuple(SR_CLASSES.values())
    assert candidates("enhanced")[0] == SR_CLASSES["enhanced"]
    assert {frozenset(candidates(one)) for one in SR_CLASSES} == {frozenset(SR_CLASSES.values())}
