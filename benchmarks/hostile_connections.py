"""The C-STORE rate of a healthy cart while others open connections and stop, against its rate when it is alone.

Ours is the node's receiving end as `serve` runs it: two processes on one port, DICOM TLS, instances fsynced, rows
committed. The cart is dcmtk's storescu, with its certificate. The hostile are a process that keeps 100 connections
open that say nothing and 20 that stop in the middle of their TLS handshake, and opens another for each that is closed.
Many short pairs, A B B A, so that a noisy neighbour meets both. Below 0.8 of the undisturbed rate it fails.

    python benchmarks/hostile_connections.py [--pairs 8] [--instances 40] [--plain]

--plain: the same without TLS; what stops then stops in the middle of its association request.
"""

import contextlib
import multiprocessing
import select
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid
from side_by_side import Results, Side, parser

from dicom_node.acceptor import listen, run_acceptor
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.settings import Settings, settings_from

SPAWN = multiprocessing.get_context("spawn")
NUM_SILENT, NUM_STOPPED = 100, 20
PIXEL_BYTES = 300_000
ENOUGH = 0.8
START_SECONDS = 60
SETTLE_SECONDS = 2


def program(name: str) -> str:
    """Return the path of a program that the benchmark needs."""
    path = shutil.which(name)
    if path is None:
        sys.exit(f"{name} is not installed: run `make test` as root on Debian, or install it by hand")
    return path


def issue(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the files of a new certificate, which signs itself, and of its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2")
    command = [program("openssl"), "req", "-x509", *curve, *names, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def write_study(folder: Path, num_instances: int) -> Path:
    """Return a folder with a new study's loops."""
    folder.mkdir()
    study, series = generate_uid(), generate_uid()
    for number in range(num_instances):
        loop = Dataset()
        loop.SOPClassUID = UltrasoundMultiFrameImageStorage
        loop.SOPInstanceUID = generate_uid()
        loop.StudyInstanceUID, loop.SeriesInstanceUID = study, series
        loop.PatientID = "BENCHMARK"
        loop.add_new(0x7FE00010, "OB", bytes(PIXEL_BYTES))
        loop.file_meta = FileMetaDataset()
        loop.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dcmwrite(folder / f"{number}.dcm", loop, enforce_file_format=True)
    return folder


@contextmanager
def receiving(settings: Settings) -> Iterator[int]:
    """Run the receiving processes until the block ends; give their port."""
    close_ledger(open_ledger(settings.database_url))
    with listen("127.0.0.1", 0) as listening:
        processes = [
            SPAWN.Process(target=run_acceptor, args=(listening, settings)) for _ in range(settings.node.acceptors)
        ]
        for process in processes:
            process.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            for process in processes:
                process.terminate()
                process.join(40)


def begin_of_a_handshake(*, plain: bool) -> bytes:
    """Return half of a ClientHello, or the head of an association request."""
    if plain:
        return b"\x01\x00\x00\x00\x00\xcd\x00\x01\x00\x00" + b"ECHONODE".ljust(16) + b"HOSTILE".ljust(16)
    hello, context = ssl.MemoryBIO(), ssl.create_default_context()
    context.check_hostname = False
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    whole = hello.read()
    return whole[: len(whole) // 2]


def be_hostile(port: int, plain: bool, wanted: Event, open_now: Event, end: Event) -> None:  # spawned
    """Hold the connections while they are wanted, and let go of them: the body of a process, which sleeps."""
    words = [b""] * NUM_SILENT + [begin_of_a_handshake(plain=plain)] * NUM_STOPPED
    poll, held = select.poll(), {}

    def open_another(word: bytes) -> None:
        connection = socket.create_connection(("127.0.0.1", port), timeout=5)
        connection.sendall(word)
        poll.register(connection, select.POLLIN)
        held[connection.fileno()] = connection, word

    def let_go(number: int) -> bytes:
        connection, word = held.pop(number)
        poll.unregister(connection)
        connection.close()
        return word

    while not end.is_set():
        if not wanted.wait(0.2):
            continue
        for word in words:
            open_another(word)
        open_now.set()
        while wanted.is_set():
            for number, _ in poll.poll(200):
                open_another(let_go(number))
        for number in list(held):
            let_go(number)
        open_now.clear()


class Hostile:
    """The process that holds connections, or holds none."""

    def __init__(self, port: int, *, plain: bool) -> None:
        """Start it."""
        self._wanted, self._open_now, self._end = SPAWN.Event(), SPAWN.Event(), SPAWN.Event()
        arguments = (port, plain, self._wanted, self._open_now, self._end)
        self._process = SPAWN.Process(target=be_hostile, args=arguments, daemon=True)
        self._process.start()

    def turn(self, *, on: bool) -> None:
        """Have the connections open, or all of them closed."""
        (self._wanted.set if on else self._wanted.clear)()
        deadline = time.monotonic() + START_SECONDS
        while self._open_now.is_set() is not on:
            if time.monotonic() > deadline or not self._process.is_alive():
                sys.exit("the hostile peers did not connect")
            time.sleep(0.05)
        time.sleep(SETTLE_SECONDS)  # the system connects before the node accepts

    def end(self) -> None:
        """End it."""
        self._wanted.clear()
        self._end.set()
        self._process.join(20)


def send(port: int, folder: Path, options: Sequence[str]) -> float:
    """Return how many instances a second storescu sends of a folder."""
    command = [program("storescu"), "-aec", "ECHONODE", "-aet", "CART", *options, "+sd", "127.0.0.1", str(port)]
    began = time.monotonic()
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    if done.returncode:
        sys.exit(f"storescu failed: {done.stderr[-2000:]}")
    return len(list(folder.iterdir())) / took


def main() -> None:
    """Send in pairs and add the ratio."""
    options_of = parser(__doc__)
    options_of.add_argument("--pairs", type=int, default=8)
    options_of.add_argument("--instances", type=int, default=40)
    options_of.add_argument("--plain", action="store_true")
    options = options_of.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        node: dict[str, Any] = {"data_dir": str(folder / "var"), "min_free_bytes": 0}
        shown: tuple[str, ...] = ()
        if not options.plain:
            (certificate, key), (cart, cart_key) = issue(folder, "node"), issue(folder, "cart")
            node["tls"] = {"certificate": str(certificate), "key": str(key), "ca": str(cart)}
            shown = ("+tls", str(cart_key), str(cart), "+cf", str(certificate))
        settings = settings_from({"node": node, "broker": {"url": "redis://127.0.0.1:1/0"}})  # nobody hears the bell
        with receiving(settings) as port:
            hostile = Hostile(port, plain=options.plain)

            def pace(*, is_beset: bool) -> float:
                study = write_study(folder / "study", options.instances)
                hostile.turn(on=is_beset)
                found = send(port, study, shown)
                shutil.rmtree(study)
                return found

            row = Results(options.results).compare(
                f"beside {NUM_SILENT} silent connections and {NUM_STOPPED} stopped handshakes",
                Side(name="ours", measure=lambda: pace(is_beset=True)),
                Side(name="the same cart alone", measure=lambda: pace(is_beset=False)),
                unit="instances/s",
                is_rate=True,
                pairs=options.pairs,
                at_least=ENOUGH,
            )
            hostile.end()
    if not row.is_reached:
        sys.exit(f"less than {ENOUGH} times the undisturbed rate")


if __name__ == "__main__":
    main()
