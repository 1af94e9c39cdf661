"""C-STORE: the node, which fsyncs and commits before it says Success, against Orthanc, dcmtk and pynetdicom.

Ours is the node's receiving end as `serve` runs it: two processes on one port, an SQLite ledger, no broker. Orthanc has
SyncStorageArea on; it and dcmtk's storescp (`--fork`) run with TCP_NODELAY=1, without which each C-STORE waits 40 ms
for Nagle's algorithm; neither dcmtk's storescp nor pynetdicom's fsyncs. All offer PDUs of 128 KB, write to one disk and
get the same data sets from the same sender: loops of 3.3 MB and stills of 60 KB, each time with other SOP Instance
UIDs. After each round every data set must lie on the disk, whole, or the benchmark fails.

    python benchmarks/receive.py [--pairs 3] [--loops 70] [--stills 300] [--peers orthanc,dcmtk,pynetdicom]
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import psutil
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, UltrasoundMultiFrameImageStorage, generate_uid
from pynetdicom import build_context
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from side_by_side import Results, Side, parser, same_work

from dicom_node.acceptor import listen, run_acceptor
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.settings import Settings, settings_from

SPAWN = multiprocessing.get_context("spawn")
PDU = 131072
LOOP_BYTES, STILL_BYTES = 3_300_000, 60_000
START_SECONDS = 60
MANY = 48
"""Pictures that 16 associations share, at least."""
SLOW_BYTES, SLOW_SECONDS = 50, 0.05
"""1 KB a second."""
STATUS = struct.pack("<HHL", 0x0000, 0x0900, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A C-STORE request, which can be sent again and again under another SOP Instance UID."""

    command: bytes
    dataset: bytes
    uid: bytes
    """SOP Instance UID in both; all have the same length."""

    @classmethod
    def of(cls, sop_class: str, num_bytes: int) -> Self:
        """Return one with so many bytes of pixel data."""
        uid, header = new_uid(), Dataset()
        header.SOPClassUID, header.SOPInstanceUID = sop_class, uid.decode()
        header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
        header.PatientID, header.Modality = "BENCHMARK", "US"
        header.add_new(0x7FE00010, "OB", random.randbytes(num_bytes))
        request = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, uid.decode()
        message = C_STORE_RQ()
        message.primitive_to_message(request)
        message.command_set.CommandDataSetType = 1
        command, dataset = encode(message.command_set, True, True), encode(header, False, True)
        assert command is not None
        assert dataset is not None
        return cls(command=command, dataset=dataset, uid=uid)

    def renamed(self) -> Self:
        """Return the same as another instance."""
        uid = new_uid()
        return replace(
            self,
            command=self.command.replace(self.uid, uid),
            dataset=self.dataset[:1000].replace(self.uid, uid) + self.dataset[1000:],
            uid=uid,
        )

    def message(self, context_id: int) -> bytes:
        """Return its P-DATA-TF PDUs."""
        size = PDU - 6
        pieces = [self.dataset[start : start + size] for start in range(0, len(self.dataset), size)]
        flags = [0] * (len(pieces) - 1) + [2]
        fragments = [(3, self.command), *zip(flags, pieces, strict=True)]
        return b"".join(
            struct.pack(">BxLLBB", 4, len(piece) + 6, len(piece) + 2, context_id, flag) + piece
            for flag, piece in fragments
        )


def new_uid() -> bytes:
    """Return a UID of 44 characters."""
    return b"2.25.1%038d" % random.randrange(10**38)


class Sender:
    """An association that sends stored bytes: its own work is small beside that of any receiver."""

    CLASSES = (UltrasoundMultiFrameImageStorage, UltrasoundImageStorage)

    def __init__(self, port: int, calling: str = "CART") -> None:
        """Associate."""
        request = A_ASSOCIATE()
        request.application_context_name = "1.2.840.10008.3.1.1.1"
        request.calling_ae_title, request.called_ae_title = calling, "ECHONODE"
        length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
        length.maximum_length_received = PDU
        implementation.implementation_class_uid = "1.2.3"
        request.user_information = [length, implementation]
        contexts = [build_context(one, ExplicitVRLittleEndian) for one in self.CLASSES]
        for number, context in enumerate(contexts):
            context.context_id = 2 * number + 1
        request.presentation_context_definition_list = contexts
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sendall(A_ASSOCIATE_RQ(request).encode())
        same_work(self._pdu()[0] == 2, "an association was not accepted")

    def store(self, message: bytes) -> None:
        """Send a C-STORE request and wait for its Success."""
        self._connection.sendall(message)
        kind, response = self._pdu()
        at = response.find(STATUS)
        same_work(kind == 4 and at > 0 and response[at + 8 : at + 10] == bytes(2), "a C-STORE had no Success")

    def trickle(self, message: bytes, end: threading.Event) -> None:
        """Send a request at 1 KB a second."""
        for start in range(0, len(message), SLOW_BYTES):
            if end.wait(SLOW_SECONDS):
                return
            self._connection.sendall(message[start : start + SLOW_BYTES])

    def close(self, *, release: bool = True) -> None:
        """Release and wait for the answer, or just close."""
        if release:
            self._connection.sendall(b"\x05\x00\x00\x00\x00\x04" + bytes(4))
            self._pdu()
        self._connection.close()

    def _pdu(self) -> tuple[int, bytes]:
        kind, length = struct.unpack(">BxL", self._exactly(6))
        return kind, self._exactly(length)

    def _exactly(self, num_bytes: int) -> bytes:
        received = b""
        while len(received) < num_bytes:
            piece = self._connection.recv(num_bytes - len(received))
            if not piece:
                raise SystemExit("a receiver closed its connection")
            received += piece
        return received


@dataclass(frozen=True, kw_only=True, slots=True)
class Receiver:
    """A running peer, or the node."""

    name: str
    """With its version."""
    port: int
    folder: Path
    """In or below which it keeps what it gets."""

    def take(self, picture: Picture, number: int, associations: int) -> float:
        """Send pictures, shared out to associations, and return how many a second were answered with Success.

        Raises:
            SystemExit: not all are there.
        """
        pictures = [picture.renamed() for _ in range(number)]
        context_id = 1 if len(picture.dataset) > LOOP_BYTES else 3
        messages = [one.message(context_id) for one in pictures]
        senders = [Sender(self.port) for _ in range(associations)]

        def send(turn: int) -> None:
            for message in messages[turn::associations]:
                senders[turn].store(message)

        with ThreadPoolExecutor(associations) as pool:
            begin = time.perf_counter()
            list(pool.map(send, range(associations)))
            took = time.perf_counter() - begin
        for sender in senders:
            sender.close()
        self._check_and_clear(pictures)
        return number / took

    def _check_and_clear(self, pictures: Sequence[Picture]) -> None:
        wanted, size = {hashlib.sha256(one.dataset).digest() for one in pictures}, len(pictures[0].dataset)
        files = [one for one in self.folder.rglob("*") if one.is_file() and one.stat().st_size >= size]
        found = {hashlib.sha256(one.read_bytes()[-size:]).digest() for one in files}
        same_work(found >= wanted, f"{self.name} kept {len(found & wanted)} of {len(wanted)}")
        for file in files:
            file.unlink()
        os.sync()  # whose files these were shall not cost the next one


# --- the receivers ---


def program(name: str) -> str:
    """Return the path of a program that the benchmark needs."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if path is None:
        sys.exit(f"{name} is not installed: run `make test` as root on Debian, or install it by hand")
    return path


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def peer(name: str, command: Sequence[str], port: int, folder: Path) -> Iterator[Receiver]:
    """Run a program until the block ends; it answers when the block begins."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=os.environ | {"TCP_NODELAY": "1"}, cwd=folder, **quiet) as process:
        deadline = time.monotonic() + START_SECONDS
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{name} did not start")
                time.sleep(0.1)
            yield Receiver(name=name, port=port, folder=folder)
        finally:
            process.terminate()


@contextmanager
def dcmtk(folder: Path) -> Iterator[Receiver]:
    """Run dcmtk's storescp, a process an association."""
    folder.mkdir()
    storescp, port = program("storescp"), free_port()
    said = subprocess.run([storescp, "--version"], capture_output=True, text=True, check=False).stdout
    options = ("--fork", "--max-pdu", str(PDU), "--bit-preserving", "--accept-all", "-od", str(folder))
    with peer(
        f"dcmtk storescp {said.split()[2].lstrip('v')}", [storescp, *options, str(port)], port, folder
    ) as receiver:
        yield receiver


@contextmanager
def pynetdicom(folder: Path) -> Iterator[Receiver]:
    """Run pynetdicom's storescp application."""
    folder.mkdir()
    port = free_port()
    options = ("-q", "-aet", "ECHONODE", "--max-pdu", str(PDU), "-od", str(folder))
    command = [sys.executable, "-m", "pynetdicom", "storescp", *options, str(port)]
    with peer(f"pynetdicom storescp {version('pynetdicom')}", command, port, folder) as receiver:
        yield receiver


@contextmanager
def orthanc(folder: Path) -> Iterator[Receiver]:
    """Run Orthanc, which fsyncs each file."""
    folder.mkdir()
    binary, port = program("Orthanc"), free_port()
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    configuration = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpServerEnabled": False,
        "DicomPort": port,
        "DicomAet": "ECHONODE",
        "DicomAlwaysAllowStore": True,
        "SyncStorageArea": True,
        "MaximumPduLength": PDU,
        "DicomThreadsCount": 4,
        "Plugins": [],
    }
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(configuration))
    with peer(f"Orthanc {said.split()[1]}", [binary, str(file)], port, folder) as receiver:
        yield receiver


def run_logged(log: str, listening: socket.socket, settings: Settings) -> None:  # spawned
    """Run an acceptor that logs to a file, as a service does."""
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    run_acceptor(listening, settings)


@contextmanager
def node(folder: Path) -> Iterator[tuple[Receiver, Callable[[], float]]]:
    """Run the node's receiving processes; give them, and what tells their CPU seconds."""
    settings: dict[str, Any] = {"data_dir": str(folder), "min_free_bytes": 0, "require_known_peer": False}
    parsed = settings_from({"node": settings, "broker": {"url": "redis://127.0.0.1:1/0"}})  # nobody hears the bell
    close_ledger(open_ledger(parsed.database_url))
    with listen("127.0.0.1", 0) as listening:
        log = str(folder.with_suffix(".log"))
        processes = [
            SPAWN.Process(target=run_logged, args=(log, listening, parsed)) for _ in range(parsed.node.acceptors)
        ]
        for process in processes:
            process.start()
        watched = [psutil.Process(process.pid) for process in processes]

        def cpu_seconds() -> float:
            times = [one.cpu_times() for one in watched]
            return sum(one.user + one.system for one in times)

        try:
            port = int(listening.getsockname()[1])
            yield Receiver(name="ours", port=port, folder=folder / "instances"), cpu_seconds
        finally:
            for process in processes:
                process.terminate()
                process.join(40)


# --- the claims ---


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One kind of picture and how many of them make a round."""

    name: str
    picture: Picture
    number: int
    unit: str
    scale: float
    """From pictures to units."""

    def side(self, receiver: Receiver, associations: int) -> Side:
        """Return a side of a comparison."""
        return Side(
            name=f"{receiver.name} x{associations}" if receiver.name == "ours" else receiver.name,
            measure=lambda: receiver.take(self.picture, self.number, associations),
        )


@contextmanager
def beside_a_slow_peer(receiver: Receiver, picture: Picture) -> Iterator[None]:
    """Let a peer send a picture at 1 KB a second until the block ends."""
    sender, end = Sender(receiver.port, "SLOW"), threading.Event()
    thread = threading.Thread(target=sender.trickle, args=(picture.renamed().message(1), end))
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        sender.close(release=False)


AIMS = {
    ("Orthanc", "loops", 1): 2.5,
    ("Orthanc", "loops", 4): 2.5,
    ("Orthanc", "stills", 1): 1.0,
    ("Orthanc", "stills", 4): 1.3,
    ("dcmtk", "loops", 1): 0.65,
    ("dcmtk", "loops", 4): 0.65,
    ("pynetdicom", "loops", 1): 3.0,
    ("pynetdicom", "loops", 4): 3.0,
    ("pynetdicom", "stills", 1): 2.0,
    ("pynetdicom", "stills", 4): 2.0,
}
"""Ratios to reach, by peer, kind of picture and associations."""


def compare_with(results: Results, ours: Receiver, other: Receiver, works: Sequence[Work], pairs: int) -> None:
    """Add the rows of a peer."""
    for work in works:
        for associations in (1, 4):
            results.compare(
                f"{work.name}, {associations} association{'s' * (associations > 1)}",
                work.side(ours, associations),
                work.side(other, associations),
                unit=work.unit,
                scale=work.scale,
                pairs=pairs,
                is_rate=True,
                at_least=AIMS.get((other.name.split()[0], work.name, associations)),
            )


def main() -> None:
    """Compare with each peer, and ours with itself when many send, or one slowly."""
    options_of = parser(__doc__)
    options_of.add_argument("--pairs", type=int, default=3)
    options_of.add_argument("--loops", type=int, default=70, help="in a round")
    options_of.add_argument("--stills", type=int, default=300, help="in a round")
    options_of.add_argument("--peers", default="orthanc,dcmtk,pynetdicom", help="comma-separated")
    options = options_of.parse_args()
    results = Results(options.results)
    loop = Picture.of(UltrasoundMultiFrameImageStorage, LOOP_BYTES)
    loops = Work(name="loops", picture=loop, number=options.loops, unit="MB/s", scale=len(loop.dataset) / 1e6)
    still = Picture.of(UltrasoundImageStorage, STILL_BYTES)
    stills = Work(name="stills", picture=still, number=options.stills, unit="instances/s", scale=1.0)
    starts = {"orthanc": orthanc, "dcmtk": dcmtk, "pynetdicom": pynetdicom}
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours, cpu_seconds = stack.enter_context(node(root / "node"))
        for name in options.peers.split(",") if options.peers else ():
            with starts[name](root / name) as other:
                compare_with(results, ours, other, (loops, stills), options.pairs)
        for work in (replace(one, number=max(one.number, MANY)) for one in (loops, stills)):
            results.compare(
                f"{work.name}, 16 associations against 4",
                work.side(ours, 16), work.side(ours, 4),
                unit=work.unit, scale=work.scale, pairs=options.pairs, is_rate=True, at_least=0.9,
            )  # fmt: skip
        spent = []
        for _ in range(options.pairs):
            before = cpu_seconds()
            ours.take(loop, options.loops, 1)
            spent.append((cpu_seconds() - before) / (options.loops * len(loop.dataset) / 1e9))
        results.measure("CPU of loops, 1 association", spent, unit="s a GB", at_most=1.0)

        def beside() -> float:
            with beside_a_slow_peer(ours, loop):
                return ours.take(loop, options.loops, 1)

        results.compare(
            "loops, 1 association, beside a peer that sends 1 KB a second",
            Side(name="beside", measure=beside), replace(loops.side(ours, 1), name="alone"),
            unit=loops.unit, scale=loops.scale, pairs=options.pairs, is_rate=True, at_least=0.9,
        )  # fmt: skip


if __name__ == "__main__":
    main()
