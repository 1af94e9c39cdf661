"""`dicom-node demo`: a node with the embedded defaults, a scanner that sends a synthetic study, and a PACS that waits.

Everything is real: C-STORE over TCP, the ledger, the broker, the worker, the report by C-STORE. Only the heart is not.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from pydicom import Dataset, dcmwrite
from pydicom.uid import (
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    JPEGBaseline8Bit,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from rich.console import Console

from dicom_node.report.text import render_text
from dicom_node.serve import STATE_FILE
from model.clip.dicom import open_loop
from model.phantom.heart import Heart
from worker.phantom_study import make_study

_HEART = Heart(edv_ml=130.0, esv_ml=55.0, heart_rate=66.0, stenosis=2)
_QUIET_SECONDS = 3.0
_START_DEADLINE = 120.0
_REPORT_DEADLINE = 300.0
_READY = '"event": "ensemble_loaded"'


class DemoFailed(Exception):
    """The demo did not end with a report; the message says where it stopped."""


def run(keep: Path | None) -> int:
    """Play the whole path and print the report; return the exit code."""
    console = Console(highlight=False)
    folder = keep or Path(tempfile.mkdtemp(prefix="echo-ai-node-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _play(folder.absolute(), console)
    except DemoFailed as error:
        console.print(f"dicom-node demo: {error}; see {folder / 'node.log'}", style="bold red")
        return 1
    return 0


def _play(folder: Path, console: Console) -> None:
    instances = [*make_study(_HEART, seed=1, at=datetime.now(UTC))]
    with _pacs() as (pacs_port, arrived), _node(folder, pacs_port) as node_port:
        console.print(f"The node listens on 127.0.0.1:{node_port}; sending {len(instances)} instances ...")
        _send(instances, node_port)
        answered_at = time.monotonic()
        try:
            *pictures, (report, received_at) = _until_report(arrived)
        except queue.Empty as error:
            raise DemoFailed(f"no report within {_REPORT_DEADLINE:.0f} s") from error
    report_path, picture = folder / "report.dcm", folder / "study.png"
    dcmwrite(report_path, report, enforce_file_format=True)
    _draw(instances, folder, picture)
    shown = [_keep(one, folder, number) for number, (one, _) in enumerate(pictures, start=1)]
    console.print(render_text(report), markup=False, soft_wrap=True)
    waited = received_at - answered_at
    console.print(
        f"\nFrom the last C-STORE answer to the report: {waited:.2f} s, "
        f"of which {_QUIET_SECONDS:.0f} s are the quiet period."
    )
    for name, path in (("report", report_path), *shown, ("picture", picture), ("log", folder / "node.log")):
        console.print(f"{name}: {path}", soft_wrap=True)


def _until_report(arrived: "queue.SimpleQueue[tuple[Dataset, float]]") -> list[tuple[Dataset, float]]:
    """Return what arrived, the report last: its pictures go before it."""
    found: list[tuple[Dataset, float]] = []
    while not found or found[-1][0].SOPClassUID != ComprehensiveSRStorage:
        found.append(arrived.get(timeout=_REPORT_DEADLINE))
    return found


def _keep(picture: Dataset, folder: Path, number: int) -> tuple[str, Path]:
    """Write a picture of the report as a PACS would, the PDF as a file of its own; return what it is."""
    if picture.SOPClassUID == EncapsulatedPDFStorage:
        path = folder / "summary.pdf"
        path.write_bytes(picture.EncapsulatedDocument[: picture.EncapsulatedDocumentLength])
        return "summary", path
    path = folder / f"picture-{number}.dcm"
    dcmwrite(path, picture, enforce_file_format=True)
    return "summary" if picture.SOPClassUID == SecondaryCaptureImageStorage else "saliency", path


@contextmanager
def _pacs() -> Iterator[tuple[int, "queue.SimpleQueue[tuple[Dataset, float]]"]]:
    """Give a Storage SCP that hands over what it receives, with the time."""
    arrived: queue.SimpleQueue[tuple[Dataset, float]] = queue.SimpleQueue()

    def keep(event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        arrived.put((dataset, time.monotonic()))
        return 0x0000

    ae = AE(ae_title="PACS")
    ae.add_supported_context(ComprehensiveSRStorage)
    ae.add_supported_context(EncapsulatedPDFStorage)
    for image in (MultiFrameTrueColorSecondaryCaptureImageStorage, SecondaryCaptureImageStorage):
        ae.add_supported_context(image, JPEGBaseline8Bit)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    assert server is not None
    try:
        yield int(server.server_address[1]), arrived
    finally:
        server.shutdown()


@contextmanager
def _node(folder: Path, pacs_port: int) -> Iterator[int]:
    """Run `dicom-node serve` with the embedded defaults; give its port."""
    config = folder / "node.toml"
    config.write_text(_CONFIGURATION.format(data_dir=json.dumps(str(folder / "var")), pacs_port=pacs_port))
    # Variables of a real node on this machine must not reach the demo's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ECHO_NODE")}
    with (folder / "node.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dicom_node", "serve", "--config", str(config)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            yield _wait_until_ready(process, folder / "var" / STATE_FILE, folder / "node.log")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


_CONFIGURATION = """\
[node]
port = 0
data_dir = {data_dir}
min_free_bytes = 100_000_000

[[peers]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs_port}
receives_reports = true

[study]
quiet_seconds = 3.0

[web]
port = 0
"""


def _wait_until_ready(process: "subprocess.Popen[bytes]", state: Path, log: Path) -> int:
    """Return the port once the node listens and its worker has loaded the networks."""
    deadline = time.monotonic() + _START_DEADLINE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoFailed(f"the node ended with exit code {process.returncode}")
        if state.exists() and _READY in log.read_text():
            port = int(_read(state)["port"])
            if _answers(port):
                return port
        time.sleep(0.1)
    raise DemoFailed(f"the node is not ready within {_START_DEADLINE:.0f} s")


def _read(state: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(state.read_text())
    return content


def _answers(port: int) -> bool:
    ae = AE(ae_title="SCANNER")
    ae.acse_timeout = ae.connection_timeout = 5
    ae.add_requested_context("1.2.840.10008.1.1")
    association = ae.associate("127.0.0.1", port, ae_title="ECHONODE")
    if not association.is_established:
        return False
    association.release()
    return True


def _send(instances: list[Dataset], port: int) -> None:
    ae = AE(ae_title="SCANNER")
    for sop_class in {instance.SOPClassUID for instance in instances}:
        ae.add_requested_context(sop_class, JPEGBaseline8Bit)
    association = ae.associate("127.0.0.1", port, ae_title="ECHONODE")
    if not association.is_established:
        raise DemoFailed("the node rejects the association")
    for instance in instances:
        answer = association.send_c_store(instance)
        if answer.get("Status") != 0x0000:
            raise DemoFailed(f"the node refuses an instance: {answer.get('Status', 'no answer')}")
    association.release()


def _draw(instances: list[Dataset], folder: Path, path: Path) -> None:
    """Write a picture of the study: the middle frame of each instance, as the node's decoder reads it."""
    tiles = []
    for number, instance in enumerate(instances, start=1):
        file = folder / f"instance-{number}.dcm"
        dcmwrite(file, instance, enforce_file_format=True)
        source = open_loop(file)
        frame = source.read([source.header.num_frames // 2])[0]
        tiles.append(Image.fromarray(frame).resize((320, 240)))
    columns = 4
    sheet = Image.new("RGB", (320 * columns, 240 * -(-len(tiles) // columns)))
    for position, tile in enumerate(tiles):
        corner = (320 * (position % columns), 240 * (position // columns))
        sheet.paste(tile, corner)
        ImageDraw.Draw(sheet).text((corner[0] + 6, corner[1] + 6), f"instance {position + 1}", fill="white")
    sheet.save(path)
