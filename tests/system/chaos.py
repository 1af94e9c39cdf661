"""A hospital on its worst day, by seed: carts that send in every way, a PACS that answers anything, and a node whose
processes are killed and stopped, whose disk fills and whose ledger is locked. What was promised is written down."""

import contextlib
import hashlib
import random
import signal
import socket
import sqlite3
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit
from pynetdicom import AE, evt
from pynetdicom.dsutils import split_dataset

from tests.doubles.pacs import DOCUMENTS
from tests.system.nodes import Node, start
from tests.system.studies import part10

TRANSIENT, WARNING, REFUSAL = 0xA700, 0xB000, 0xC000


@dataclass(frozen=True, kw_only=True)
class Acknowledged:
    """An instance for which the node has answered 0x0000: its promise."""

    study_uid: str
    sop_uid: str
    sha256: str
    """Of the data set as sent."""


class Pacs:
    """A PACS whose answers are drawn at random while `is_moody`; it keeps what it took, by SOP Instance UID."""

    def __init__(self, seed: int) -> None:
        self.port = 0
        self.is_moody = True
        self.kept: dict[str, list[bytes]] = {}
        """Every data set that it answered with Success or a warning, or kept before it broke off."""
        self._rng = random.Random(seed)
        self._server: object = None

    def start(self) -> None:
        """Listen, on the same port each time."""
        ae = AE(ae_title="PACS")
        for uid in DOCUMENTS:
            ae.add_supported_context(uid, [ExplicitVRLittleEndian, JPEGBaseline8Bit])
        handlers = [(evt.EVT_REQUESTED, self._on_requested), (evt.EVT_C_STORE, self._on_c_store)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        """Listen no more; the port answers nobody."""
        self._server.shutdown()  # type: ignore[attr-defined]
        self._server.server_close()  # type: ignore[attr-defined]

    def _on_requested(self, event: evt.Event) -> None:
        if self.is_moody and self._rng.random() < 0.05:
            event.assoc.acse.send_reject(2, 3, 1)
            event.assoc.kill()

    def _on_c_store(self, event: evt.Event) -> int:
        mood = self._rng.random() if self.is_moody else 1.0
        if mood < 0.05:
            return TRANSIENT
        if mood < 0.07:
            return REFUSAL
        if mood < 0.10:
            event.assoc.abort()
            return 0x0110
        content = event.request.DataSet.getvalue()
        self.kept.setdefault(str(event.request.AffectedSOPInstanceUID), []).append(content)
        if mood < 0.14:
            event.assoc.abort()  # it has it, and nobody hears so
            return 0x0110
        if mood < 0.16:
            time.sleep(1.0)
        return WARNING if mood < 0.25 else 0x0000


@dataclass(kw_only=True)
class Cart:
    """An ultrasound machine: sends studies, and sends again what was not taken, as carts do."""

    node: Node
    rng: random.Random
    folder: Path
    templates: Sequence[Dataset]
    acknowledged: list[Acknowledged] = field(default_factory=list)

    def send_studies(self, number: int) -> None:
        """Send studies one after the other; some in pieces, some twice, some with a late instance."""
        late: list[tuple[float, str]] = []
        for _ in range(number):
            study_uid = _new_uid()
            files = [self._instance(study_uid) for _ in range(self.rng.randint(1, 4))]
            cut = self.rng.randint(1, len(files))
            self._send(study_uid, files[:cut])
            self._send(study_uid, files[cut:])
            if self.rng.random() < 0.1:
                self._send(study_uid, files)  # once more
            if self.rng.random() < 0.1:
                late.append((time.monotonic() + self.rng.uniform(1.0, 8.0), study_uid))
            for due, uid in [one for one in late if one[0] < time.monotonic()]:
                late.remove((due, uid))
                self._send(uid, [self._instance(uid)])
        for _, uid in late:
            self._send(uid, [self._instance(uid)])

    def _instance(self, study_uid: str) -> Path:
        instance = self.rng.choice(self.templates)
        instance.StudyInstanceUID, instance.SeriesInstanceUID = study_uid, f"{study_uid}.1"
        instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = _new_uid()
        path = self.folder / f"{instance.SOPInstanceUID}.dcm"
        path.write_bytes(part10(instance))
        return path

    def _send(self, study_uid: str, files: Sequence[Path]) -> None:
        """Send files until each was taken; what is promised meanwhile is written down."""
        waiting = list(files)
        end = time.monotonic() + 300
        while waiting:
            assert time.monotonic() < end, "the node takes nothing for five minutes"
            taken = self._over_one_association(study_uid, waiting)
            waiting = [one for one in waiting if one not in taken]
            if waiting:
                time.sleep(self.rng.uniform(0.2, 1.0))

    def _over_one_association(self, study_uid: str, files: Sequence[Path]) -> set[Path]:
        ae = AE(ae_title="CART")
        ae.acse_timeout = ae.dimse_timeout = ae.connection_timeout = 30
        for template in self.templates:
            ae.add_requested_context(template.SOPClassUID, template.file_meta.TransferSyntaxUID)
        association = ae.associate("127.0.0.1", self.node.port, ae_title="ECHONODE")
        taken = set()
        breaks_off_after = self.rng.randint(0, 3) if self.rng.random() < 0.1 else len(files)
        with contextlib.suppress(RuntimeError, ValueError):  # what pynetdicom says of an association that is gone
            for file in files[:breaks_off_after]:
                if association.send_c_store(file).get("Status") == 0x0000:
                    taken.add(file)
                    sha256 = _dataset_sha256(file)
                    self.acknowledged.append(Acknowledged(study_uid=study_uid, sop_uid=file.stem, sha256=sha256))
        if association.is_established:
            association.release() if breaks_off_after >= len(files) else association.abort()
        return taken


@dataclass(kw_only=True)
class Faults:
    """What goes wrong at the node, one thing after the other, until `stop`."""

    node: Node
    pacs: Pacs
    rng: random.Random
    has_own_disk: bool
    played: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes]
    """`dicom-node serve`, started again whenever it was killed."""

    def play(self, stop: threading.Event) -> None:
        """Play faults until told to stop, and leave the node whole."""
        waiting: list[Callable[[], None]] = []
        while not stop.wait(self.rng.uniform(0.1, 1.5)):
            if not waiting:  # each kind comes as often as the others
                waiting = self.rng.sample(self._all, len(self._all))
            fault = waiting.pop()
            fault()
            self.played.append(fault.__name__.strip("_"))

    @property
    def _all(self) -> list[Callable[[], None]]:
        own_disk = [self._disk_full] if self.has_own_disk else []
        return [
            self._kill_child,
            self._kill_node,
            self._kill_worker_process,
            self._stop_child_for_a_while,
            self._stop_worker_process_for_a_while,
            self._ledger_locked,
            self._pacs_down,
            self._silent_connections,
            self._garbage,
            *own_disk,
        ]

    def _children(self) -> list[psutil.Process]:
        found = []
        for child in self.node.state["children"]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(child["pid"]))
        return found

    def _worker_processes(self) -> list[psutil.Process]:
        """Return the processes that hold the networks: the children of Celery's parent."""
        found = []
        for child in self.node.state["children"]:
            if child["name"] == "worker":
                with contextlib.suppress(psutil.NoSuchProcess):
                    found += psutil.Process(child["pid"]).children()
        return found

    def _kill_child(self) -> None:
        self._signal(self._children(), signal.SIGKILL)

    def _kill_node(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = start(self.node)

    def _kill_worker_process(self) -> None:
        self._signal(self._worker_processes(), signal.SIGKILL)

    def _stop_child_for_a_while(self) -> None:
        self._stop_for_a_while(self._children())

    def _stop_worker_process_for_a_while(self) -> None:
        self._stop_for_a_while(self._worker_processes())

    def _stop_for_a_while(self, processes: Sequence[psutil.Process]) -> None:
        stopped = self._signal(processes, signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.5, 9.0))
        if stopped is not None:
            self._signal([stopped], signal.SIGCONT)

    def _signal(self, processes: Sequence[psutil.Process], number: signal.Signals) -> psutil.Process | None:
        if not processes:
            return None
        process = self.rng.choice(processes)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        return process

    def _ledger_locked(self) -> None:
        path = self.node.folder / "var" / "ledger.sqlite"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as holder:
            try:
                holder.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:  # somebody is busier than we are
                return
            time.sleep(self.rng.uniform(0.5, 8.0))
            holder.rollback()

    def _disk_full(self) -> None:
        ballast = self.node.folder / "var" / "ballast"
        # To the last page; unbuffered, or closing the file would fail once more.
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(size))
        time.sleep(self.rng.uniform(0.5, 4.0))
        ballast.unlink()

    def _pacs_down(self) -> None:
        self.pacs.stop()
        time.sleep(self.rng.uniform(0.5, 4.0))
        self.pacs.start()

    def _silent_connections(self) -> None:
        with ExitStack() as stack:
            with contextlib.suppress(OSError):
                for _ in range(20):
                    stack.enter_context(socket.create_connection(("127.0.0.1", self.node.port), timeout=5))
            time.sleep(self.rng.uniform(0.5, 2.0))

    def _garbage(self) -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.node.port), timeout=5) as connection,
        ):
            connection.sendall(self.rng.randbytes(self.rng.randint(1, 5000)))


@contextmanager
def own_disk(folder: Path, num_bytes: int) -> Iterator[bool]:
    """Give the folder a disk of its own, which can be filled; tell whether that is allowed here (to root alone)."""
    folder.mkdir(parents=True)
    size = f"size={num_bytes}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=False, capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)


def _new_uid() -> str:
    return f"2.25.{uuid.uuid4().int}"


def _dataset_sha256(file: Path) -> str:
    _meta, start = split_dataset(file)
    return hashlib.sha256(file.read_bytes()[start:]).hexdigest()
