"""The tables say what the code does; node and model never see each other, here they meet."""

from dataclasses import replace

import pytest
from pydicom.uid import UID as PydicomUID
from pydicom.uid import AllTransferSyntaxes

from dicom_node.sop_classes import STORED, TRANSFER_SYNTAXES, Decoding, Encoding, Handling, SopClass, encodings
from model.clip.pixels import DECODABLE
from model.clip.select import select
from model.clip.source import LoopHeader
from tests.doubles.loops import PLAIN


def header(sop_class: str) -> LoopHeader:
    """Return the header of an image that nothing speaks against but its class."""
    return replace(PLAIN, sop_class_uid=sop_class)


def test_no_uid_is_listed_twice() -> None:
    """A table with two answers has none."""
    assert len({known.uid for known in STORED}) == len(STORED)
    assert len({known.uid for known in TRANSFER_SYNTAXES}) == len(TRANSFER_SYNTAXES)


def test_every_uid_has_its_name_in_the_standard() -> None:
    """A slip in a digit would be a number without a name."""
    names = {known.uid: known.name for known in STORED}
    names |= {known.uid: known.name for known in TRANSFER_SYNTAXES if not PydicomUID(known.uid).is_private}

    assert all(name != uid for uid, name in names.items())


def test_the_worker_decodes_what_the_table_says() -> None:
    """No more and no less."""
    assert {known.uid for known in TRANSFER_SYNTAXES if known.decoding is not Decoding.NONE} == set(DECODABLE)


@pytest.mark.parametrize("known", STORED, ids=lambda known: known.uid)
def test_the_classes_that_are_analysed_are_those_that_the_table_names(known: SopClass) -> None:
    """The others get their reason, whatever else speaks for them, but a still image is asked for its frames first."""
    is_ultrasound_still = known.uid in ("1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.6")

    if not is_ultrasound_still:
        assert select(header(known.uid)).is_accepted == (known.handling is Handling.ANALYSED)


def test_the_encoding_of_a_data_set_follows_its_transfer_syntax() -> None:
    """And of an unknown one each is tried."""
    assert encodings("1.2.840.10008.1.2") == (Encoding.IMPLICIT_LITTLE,)
    assert encodings("1.2.840.10008.1.2.2") == (Encoding.EXPLICIT_BIG,)
    assert encodings("1.2.840.10008.1.2.4.50") == (Encoding.EXPLICIT_LITTLE,)
    assert len(encodings("1.2.3.4")) == 3


def test_every_transfer_syntax_of_pydicom_is_known() -> None:
    """A new release may bring new ones."""

    of_streams = {f"1.2.840.10008.1.2.7.{number}" for number in (1, 2, 3)}  # DICOM-RTV: never in a file

    assert {str(uid) for uid in AllTransferSyntaxes} - of_streams <= {str(known.uid) for known in TRANSFER_SYNTAXES}
