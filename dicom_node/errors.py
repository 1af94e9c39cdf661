"""The node's errors, one class for each thing a caller does differently.

NodeError
+-- ConfigurationError      the configuration is wrong: exit 2
+-- InvalidUID              a value is no DICOM UID: 0xC000 / 0xC001
+-- InvalidAETitle          a value is no AE title
+-- IntakeError             an instance was not kept: the peer gets a failure status
|   +-- StoreError          the file could not be made safe: 0xA700
|   |   +-- OutOfSpace      the reserve of free space is reached: 0xA700
|   |   +-- ObjectError     the object store is at fault, not this machine's disk
|   |       +-- ObjectsUnavailable  it takes and gives nothing now: tried again, no attempt is counted
|   |       +-- ObjectLost  it has not got it: the node puts it there again
|   |       +-- ObjectDiffers  it has something else in its place
|   +-- LedgerUnavailable   the ledger cannot commit now: 0xA700
|   +-- UidConflict         the SOP Instance UID is known under another study: 0xC010
|   +-- OtherStudy          a peer that was asked for a study sends another: 0x0124
+-- ReportError             no report can be made of this study: state failed, reason named
+-- DeliveryError           a report did not reach its peer
|   +-- Transient           worth another attempt after a wait
|   +-- Refused             the peer will never take it: dead letter
|   |   +-- ClassRefused    it takes no instance of this SOP class: another class is tried
|   +-- UnreadableReport    the file of the report is missing or damaged: dead letter
+-- MalformedCommitment     a message of Storage Commitment holds no list: 0x0115
+-- RetrieveError           a study was not fetched, or not whole: exit 1
+-- DamagedMessage          a line of the audit trail is no message: it is not forwarded
+-- BrokerError             the embedded broker does not start
+-- CannotServe             the node cannot start here: a port is taken, or another node uses the folder
+-- NotInstalled            an optional part of the package is missing
+-- CannotReopen            the study cannot be analysed again now: exit 1
+-- InvalidCursor           no page of the list begins there: 404
+-- UnreadableCine          a picture for the page is missing or damaged: 404
+-- UnknownStudy            no study of this UID in the ledger: exit 1
+-- UnknownPeer             no peer of this name in the configuration: exit 2
"""

from collections.abc import Callable
from datetime import timedelta


class NodeError(Exception):
    """Something that the node expected could go wrong."""


class ConfigurationError(NodeError):
    """The configuration is wrong; the message names the key and the remedy."""


def check_all(*checks: Callable[[], object]) -> None:
    """Run every check, also after one that failed.

    Raises:
        ConfigurationError: what they all raised, one a line.
    """
    mistakes = []
    for check in checks:
        try:
            check()
        except ConfigurationError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))


class InvalidUID(NodeError):
    """A value is no DICOM UID (PS3.5 section 9.1)."""


class InvalidAETitle(NodeError):
    """A value is no AE title (PS3.5 table 6.2-1)."""


class IntakeError(NodeError):
    """An instance was not kept."""


class StoreError(IntakeError):
    """The bytes could not be made safe on disk; nothing was kept."""


class OutOfSpace(StoreError):
    """The disk has less than the configured reserve left; nothing was kept."""


class ObjectError(StoreError):
    """The object store does not take or give a file."""


class ObjectsUnavailable(ObjectError):
    """The object store does not take or give anything now; the message says why."""


class ObjectLost(ObjectError):
    """The object store has not got the object."""


class ObjectDiffers(ObjectError):
    """The object store has something else in the place of the object."""


class LedgerUnavailable(IntakeError):
    """The ledger could not commit; the peer should send again."""


class UidConflict(IntakeError):
    """The SOP Instance UID is already known under another study; the bytes are in quarantine."""


class OtherStudy(IntakeError):
    """The instance is of another study than the one that was asked for; nothing was kept."""


class ReportError(NodeError):
    """No report can be made of this study; the message is the reason that people read."""


class DeliveryError(NodeError):
    """A report did not reach its peer."""


class Transient(DeliveryError):
    """The delivery is worth another attempt after a wait."""

    def __init__(self, message: str, *, retry_after: timedelta | None = None) -> None:
        """Keep the wait that the peer asks for, if it does."""
        super().__init__(message)
        self.retry_after = retry_after


class Refused(DeliveryError):
    """The peer will not take this report, however often it is sent."""


class ClassRefused(Refused):
    """The peer takes no instance of this SOP class."""


class UnreadableReport(DeliveryError):
    """The file of the report, or of a picture, is missing or damaged."""


class MalformedCommitment(NodeError):
    """A message of Storage Commitment does not say what it must; the message names what, without a value."""


class RetrieveError(NodeError):
    """A study was not fetched from its peer, or not whole; what came is kept, and fetching it again completes it."""


class DamagedMessage(NodeError):
    """A line of the audit trail is no message: the machine went down while it was written."""


class BrokerError(NodeError):
    """The embedded broker could not be started."""


class CannotServe(NodeError):
    """The node cannot start here: a port is taken, or another node uses its folder."""


class NotInstalled(NodeError):
    """The command needs an optional part of the package."""


class CannotReopen(NodeError):
    """The study cannot be analysed again now; the message says why and what to do."""


class InvalidCursor(NodeError):
    """No page of the list of studies begins where it is asked for."""


class UnreadableCine(NodeError):
    """A picture that the page should show is missing or damaged."""


class UnknownStudy(NodeError):
    """The ledger holds no study of this UID."""


class UnknownPeer(NodeError):
    """The configuration names no such peer."""
