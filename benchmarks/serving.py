"""What benchmarks of the whole node share: a node as `serve` runs it, a cart that sends, and a PACS that waits."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid
from pynetdicom import AE, evt
from side_by_side import same_work

from model.phantom.heart import Heart
from model.tasks import View
from tests.doubles.pacs import DOCUMENTS
from tests.system.nodes import Node, configured, running, wait_until
from worker.phantom_study import Shot, make_study

QUIET = 30.0
"""Seconds of the node's quiet period: the default."""
DEADLINE = 900.0
SHOTS = [Shot(view=view) for view in (View.A4C, View.A2C, View.PLAX, View.PSAX, View.A4C)]


class Pacs:
    """A Storage SCP that remembers when the report of a study came."""

    def __init__(self) -> None:
        """Listen."""
        self._came: dict[str, queue.SimpleQueue[float]] = {}
        self._lock = threading.Lock()
        ae = AE(ae_title="PACS")
        for sop_class in DOCUMENTS:
            ae.add_supported_context(sop_class, [ExplicitVRLittleEndian, JPEGBaseline8Bit])
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._keep)])
        assert self._server is not None
        self.port = int(self._server.server_address[1])

    def wait_for(self, study: str) -> float:
        """Return when its report came."""
        return self._of(study).get(timeout=DEADLINE)

    def close(self) -> None:
        """Listen no more."""
        assert self._server is not None
        self._server.shutdown()

    def _keep(self, event: evt.Event) -> int:
        now = time.monotonic()
        if event.request.AffectedSOPClassUID == ComprehensiveSRStorage:
            self._of(str(event.dataset.StudyInstanceUID)).put(now)
        return 0x0000

    def _of(self, study: str) -> "queue.SimpleQueue[float]":
        with self._lock:
            return self._came.setdefault(study, queue.SimpleQueue())


@contextmanager
def running_node(folder: Path, pacs_port: int) -> Iterator[Node]:
    """Run `dicom-node serve` with the embedded defaults until the block ends; its worker has loaded the networks."""
    node = configured(folder, pacs_port=pacs_port, pacs_ae="PACS", quiet=QUIET)
    with running(node):
        wait_until(lambda: node.events("ensemble_loaded") or None, "the worker has loaded the networks", node)
        yield node


def loops() -> list[Dataset]:
    """Return loops of one heart, to be sent again and again under new names."""
    heart = Heart(edv_ml=130.0, esv_ml=55.0, heart_rate=66.0)
    return list(make_study(heart, seed=1, at=datetime.now(UTC), shots=SHOTS))


def send(pictures: Sequence[Dataset], port: int, num_loops: int, over: float, cart: str) -> tuple[str, float]:
    """Send a new study, one loop after another; return its UID and when the last was answered."""
    study = generate_uid()
    ae = AE(ae_title=cart)
    ae.add_requested_context(pictures[0].SOPClassUID, JPEGBaseline8Bit)
    association = ae.associate("127.0.0.1", port, ae_title="ECHONODE")
    same_work(association.is_established, "the node rejects the association")
    begin = time.monotonic()
    for number in range(num_loops):
        time.sleep(max(0.0, begin + over * number / num_loops - time.monotonic()))
        instance = Dataset()
        instance.update(pictures[number % len(pictures)])
        instance.file_meta = pictures[0].file_meta
        instance.StudyInstanceUID, instance.SOPInstanceUID = study, generate_uid()
        instance.InstanceNumber = number + 1
        answer = association.send_c_store(instance)
        same_work(answer.get("Status") == 0, f"a loop was answered {answer.get('Status', 'nothing')}")
    answered_at = time.monotonic()
    association.release()
    return study, answered_at
