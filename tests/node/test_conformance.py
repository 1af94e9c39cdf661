"""What the conformance statement says is what an association negotiates: a peer that proposes everything."""

import re
from collections.abc import Iterable, Sequence

from pydicom._uid_dict import UID_dictionary  # the standard's own list: pydicom has no public road to it
from pynetdicom import AE, build_context

from dicom_node.conformance import Role, supported
from dicom_node.services import TAKEN_FOR_STORAGE, UNCOMPRESSED, VERIFICATION
from dicom_node.sop_classes import TRANSFER_SYNTAXES
from tests.doubles.receiver import Receiver
from tests.doubles.wire_peer import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, JPEG_BASELINE, US_MULTIFRAME

MAX_CONTEXTS = 128
PRIVATE = "1.2.826.0.1.3680043.9.9.9"
CLASSES = {uid: entry for uid, entry in UID_dictionary.items() if entry[1] in ("SOP Class", "Meta SOP Class")}
NO_STORAGE_OF_INSTANCES = re.compile(
    "Hanging Protocol|Color Palette|Generic Implant|Implant (Assembly|Template)|Defined Procedure|Approval|Inventory"
    "|Media Storage|Storage Commitment|Storage Management"
)
"""In the names of classes that are no storage of a patient's instances."""


def offered(receiver: Receiver, contexts: Iterable[tuple[str, Sequence[str]]]) -> dict[tuple[str, str], str | None]:
    """Propose contexts, on as many associations as it takes.

    Returns:
        Abstract and first transfer syntax -> the transfer syntax that is accepted, None where the context is refused.
    """
    answers: dict[tuple[str, str], str | None] = {}
    waiting = [build_context(uid, list(syntaxes)) for uid, syntaxes in contexts]
    for start in range(0, len(waiting), MAX_CONTEXTS):
        ae = AE(ae_title="CART")
        ae.requested_contexts = waiting[start : start + MAX_CONTEXTS]
        association = ae.associate("127.0.0.1", receiver.port, ae_title="ECHONODE")
        assert association.is_established
        asked = {context.context_id: context for context in association.requestor.requested_contexts}
        for answer in (*association.accepted_contexts, *association.rejected_contexts):
            context = asked[answer.context_id]
            key = (str(context.abstract_syntax), str(context.transfer_syntax[0]))
            answers[key] = str(answer.transfer_syntax[0]) if answer.result == 0 else None
        association.release()
    return answers


def is_taken(uid: str) -> bool:
    """Return what the statement says of a SOP class of the standard."""
    name, _, _, retired, _ = CLASSES[uid]
    listed = {one.uid for one in supported() if one.role is Role.SCP}
    is_storage = "Storage" in name and not NO_STORAGE_OF_INSTANCES.search(name)
    is_left_over = bool(retired) and "Query/Retrieve" not in name
    return is_storage or is_left_over or uid in listed or uid in TAKEN_FOR_STORAGE


def test_an_association_negotiates_what_the_statement_says_of_every_sop_class(receiver: Receiver) -> None:
    """Every SOP class of the standard, and a private one."""
    answers = offered(receiver, [(uid, [EXPLICIT_LITTLE]) for uid in (*CLASSES, PRIVATE)])

    taken = {uid for (uid, _), syntax in answers.items() if syntax is not None}
    assert len(answers) == len(CLASSES) + 1 > 300
    assert taken == {uid for uid in CLASSES if is_taken(uid)} | {PRIVATE}


def test_an_association_negotiates_what_the_statement_says_of_every_transfer_syntax(receiver: Receiver) -> None:
    """Storage is taken in any, other services in those of their set."""
    syntaxes = [str(one.uid) for one in TRANSFER_SYNTAXES]
    lines = [one for one in supported() if one.role is Role.SCP]
    answers = offered(receiver, [(one.uid, [syntax]) for one in lines for syntax in syntaxes])

    expected = {
        (one.uid, syntax): syntax if one.transfer_syntaxes is None or syntax in one.transfer_syntaxes else None
        for one in lines
        for syntax in syntaxes
    }
    assert answers == expected


def test_of_several_transfer_syntaxes_the_one_is_taken_that_the_statement_names(receiver: Receiver) -> None:
    """The requestor's first for storage, the set's first for Verification."""
    backwards = [EXPLICIT_BIG, IMPLICIT_LITTLE, EXPLICIT_LITTLE]
    answers = offered(receiver, [(US_MULTIFRAME, [JPEG_BASELINE, *backwards]), (VERIFICATION, backwards)])

    assert answers == {(US_MULTIFRAME, JPEG_BASELINE): JPEG_BASELINE, (VERIFICATION, EXPLICIT_BIG): UNCOMPRESSED[0]}
