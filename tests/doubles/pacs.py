"""A PACS that answers as a test says: a real Storage SCP on a port of its own."""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from pydicom.uid import (
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

DOCUMENTS = (
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    EncapsulatedPDFStorage,
    ComprehensiveSRStorage,
)
"""SOP classes of a report and its pictures, in the order in which they go out."""


class Conduct(Enum):
    """What it does instead of answering with a status."""

    ABORT = "abort the association in the middle of a C-STORE"
    REJECT_TRANSIENT = (2, 3, 1)
    REJECT_PERMANENT = (1, 1, 7)


@dataclass(kw_only=True)
class Pacs:
    """What a running PACS will do and what it has got."""

    port: int = 0
    script: list[int | Conduct] = field(default_factory=list)
    """Its answers, one a C-STORE (or association, for a rejection); Success when they are used up."""
    stored: list[bytes] = field(default_factory=list)
    """Data sets that it answered with Success or a warning, as they came."""
    classes: list[str] = field(default_factory=list)
    """SOP class of each of them."""
    num_associations: int = 0
    calling_ae: str = ""

    def on_requested(self, event: evt.Event) -> None:
        """Reject the association if that is next."""
        if self.script and self.script[0] in (Conduct.REJECT_TRANSIENT, Conduct.REJECT_PERMANENT):
            conduct = self.script.pop(0)
            assert isinstance(conduct, Conduct)
            event.assoc.acse.send_reject(*conduct.value)
            event.assoc.kill()
            return
        self.num_associations += 1
        self.calling_ae = str(event.assoc.requestor.primitive.calling_ae_title)

    def on_c_store(self, event: evt.Event) -> int:
        """Answer with what is next."""
        answer = self.script.pop(0) if self.script else 0x0000
        if isinstance(answer, Conduct):
            event.assoc.abort()
            return 0x0110
        if answer == 0x0000 or answer >> 12 == 0xB:
            self.stored.append(event.request.DataSet.getvalue())
            self.classes.append(str(event.request.AffectedSOPClassUID))
        return answer


@contextmanager
def running_pacs(
    *script: int | Conduct,
    classes: Sequence[str] = (ComprehensiveSRStorage,),
    syntaxes: Sequence[str] = (ExplicitVRLittleEndian,),
    tls: ssl.SSLContext | None = None,
) -> Iterator[Pacs]:
    """Run a PACS that takes only these SOP classes, in these transfer syntaxes, until the block ends."""
    pacs = Pacs(script=list(script))
    ae = AE(ae_title="PACS")
    ae.add_supported_context(Verification)
    for uid in classes:
        ae.add_supported_context(uid, list(syntaxes))
    server = ae.start_server(
        ("127.0.0.1", 0),
        block=False,
        ssl_context=tls,
        evt_handlers=[(evt.EVT_REQUESTED, pacs.on_requested), (evt.EVT_C_STORE, pacs.on_c_store)],
    )
    pacs.port = server.server_address[1]
    try:
        yield pacs
    finally:
        server.shutdown()
        server.server_close()
