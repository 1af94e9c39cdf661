"""A PACS that is asked for studies: a real Query/Retrieve SCP on a port of its own, well behaved or as a test says."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.association import Association

from tests.doubles.datasets import STUDY, loop
from tests.doubles.wire_peer import EXPLICIT_LITTLE, US_MULTIFRAME

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
GET = "1.2.840.10008.5.1.4.1.2.2.3"

Match = tuple[int, Dataset | None]


def stored(
    number: int, *, study: str = STUDY, sop_class: str = US_MULTIFRAME, syntax: str = EXPLICIT_LITTLE
) -> Dataset:
    """Return an instance as an archive holds it."""
    instance = loop(f"{STUDY}.{number}", sop_class, study)
    instance.file_meta = FileMetaDataset()
    instance.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    instance.file_meta.TransferSyntaxUID = UID(syntax)
    return instance


@dataclass(kw_only=True)
class Archive:
    """What a running archive holds, how it behaves, and what it saw."""

    holds: list[Dataset]
    sends: list[Dataset] | None = None
    """What it sends for a study, if not what it holds."""
    ignores_keys: bool = False
    """It names all that it holds, whatever study it is asked for."""
    find_status: int = 0x0000
    status: int | None = None
    """Of a C-GET or C-MOVE, instead of doing it."""
    abort_after: int | None = None
    """Sub-operations after which it aborts."""
    hangs_in: str | None = None
    """The service in which it says nothing any more."""
    destination: tuple[str, int] | None = None
    """Where it thinks that a move goes to; None: it knows no destination."""
    sends_afterwards: bool = False
    """It answers a C-MOVE before it sends."""
    pause_seconds: float = 0.0
    """Before each sub-operation."""
    port: int = 0
    statuses: list[int] = field(default_factory=list)
    """What it got for its C-STOREs of a C-GET."""
    syntaxes: list[str] = field(default_factory=list)
    """Transfer syntaxes of the accepted storage contexts, in their order."""
    let_go: threading.Event = field(default_factory=threading.Event)
    moved: list[threading.Thread] = field(default_factory=list)

    def on_accepted(self, event: evt.Event) -> None:
        """Take the role of the sender even where none was negotiated, as real archives do."""
        for context in event.assoc.accepted_contexts:
            context._as_scu = True
            if context.abstract_syntax not in (FIND, GET, MOVE):
                self.syntaxes.append(str(context.transfer_syntax[0]))

    def on_c_find(self, event: evt.Event) -> Iterator[Match]:
        """Name what matches at the level that is asked for."""
        self._hang("find", event)
        if self.find_status:
            yield self.find_status, None
            return
        wanted = event.identifier
        keyword = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
        named = set()
        for instance in self._matching(wanted.StudyInstanceUID):
            uid = instance[keyword[wanted.QueryRetrieveLevel]].value
            if uid not in named:
                named.add(uid)
                yield 0xFF00, _answer(wanted, instance)

    def on_c_get(self, event: evt.Event) -> Iterator[object]:
        """Send the study over the same association."""
        yield from self._sub_operations("get", event)

    def on_c_move(self, event: evt.Event) -> Iterator[object]:
        """Send the study to its destination."""
        if self.destination is None:
            yield None, None
            return
        yield self.destination
        if self.sends_afterwards:
            self._send_later(event.assoc, self.destination, self._to_send(event))
            yield 0
            return
        yield from self._sub_operations("move", event)

    def on_dimse(self, event: evt.Event) -> None:
        """Note what the node answers to a C-STORE."""
        if type(event.message).__name__ == "C_STORE_RSP":
            self.statuses.append(int(event.message.command_set.Status))

    def _sub_operations(self, service: str, event: evt.Event) -> Iterator[object]:
        to_send = self._to_send(event)
        yield len(to_send)
        self._hang(service, event)
        if self.status is not None:
            yield self.status, Dataset()
            return
        for number, instance in enumerate(to_send):
            if number == self.abort_after:
                event.assoc.abort()
                return
            self.let_go.wait(self.pause_seconds)
            yield 0xFF00, instance

    def _to_send(self, event: evt.Event) -> list[Dataset]:
        return self._matching(event.identifier.StudyInstanceUID) if self.sends is None else self.sends

    def _matching(self, study: str) -> list[Dataset]:
        return [one for one in self.holds if self.ignores_keys or study == one.StudyInstanceUID]

    def _hang(self, service: str, event: evt.Event) -> None:
        if self.hangs_in == service:
            self.let_go.wait()
            event.assoc.abort()

    def _send_later(self, asked: Association, destination: tuple[str, int], instances: Sequence[Dataset]) -> None:
        def send() -> None:
            asked.join()  # the association that asked has ended
            ae = AE(ae_title="PACS")
            ae.add_requested_context(US_MULTIFRAME, EXPLICIT_LITTLE)
            association = ae.associate(*destination, ae_title="ECHONODE")
            for instance in instances:
                association.send_c_store(instance)
            association.release()

        self.moved.append(threading.Thread(target=send))
        self.moved[-1].start()


@contextmanager
def running_archive(
    archive: Archive,
    *,
    services: Sequence[str] = (FIND, GET, MOVE),
    syntaxes: Sequence[str] = tuple(ALL_TRANSFER_SYNTAXES),
    grants_roles: bool = True,
) -> Iterator[Archive]:
    """Run an archive until the block ends."""
    ae = AE(ae_title="PACS")
    for uid in services:
        ae.add_supported_context(uid)
    for uid in {one.SOPClassUID for one in [*archive.holds, *(archive.sends or ())]}:
        if grants_roles:
            ae.add_supported_context(uid, list(syntaxes), scu_role=False, scp_role=True)
        else:
            ae.add_supported_context(uid, list(syntaxes))
        ae.add_requested_context(uid, EXPLICIT_LITTLE)  # of the associations that move
    server = ae.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[
            (evt.EVT_ACCEPTED, archive.on_accepted),
            (evt.EVT_C_FIND, archive.on_c_find),
            (evt.EVT_C_GET, archive.on_c_get),
            (evt.EVT_C_MOVE, archive.on_c_move),
            (evt.EVT_DIMSE_RECV, archive.on_dimse),
        ],
    )
    archive.port = server.server_address[1]
    try:
        yield archive
    finally:
        archive.let_go.set()
        for thread in archive.moved:
            thread.join()
        server.shutdown()
        server.server_close()


def _answer(wanted: Dataset, instance: Dataset) -> Dataset:
    answer = Dataset()
    answer.QueryRetrieveLevel = wanted.QueryRetrieveLevel
    for element in wanted:
        if element.keyword != "QueryRetrieveLevel":
            answer[element.tag] = deepcopy(instance[element.tag])
    return answer
