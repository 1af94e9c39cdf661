"""A PACS with a DICOMweb service on a port of its own, which answers as a test says."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydicom import Dataset
from pydicom.filewriter import dcmwrite

BOUNDARY = "cut here"


@dataclass(kw_only=True)
class WebArchive:
    """What a running service holds, how it behaves, and what it was asked."""

    holds: list[Dataset]
    page: int = 1000
    """Instances that it names at a time, however many were asked for."""
    ignores_offset: bool = False
    status: dict[str, int] = field(default_factory=dict)
    """HTTP statuses of `instances` (QIDO-RS) and `study` (WADO-RS), instead of an answer."""
    body: bytes | None = None
    """Of WADO-RS, instead of the study."""
    content_type: str = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'
    listing: Any = None
    """Of QIDO-RS, instead of the instances."""
    is_silent: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path with query, and what was accepted."""
    url: str = ""
    let_go: threading.Event = field(default_factory=threading.Event)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, content type and body."""
        parts = urlsplit(path)
        what = "instances" if parts.path.endswith("/instances") else "study"
        if what in self.status:
            return self.status[what], "text/plain", b"what a server says may name the patient"
        study = parts.path.split("/")[3]
        matching = [one for one in self.holds if study == one.StudyInstanceUID]
        if what == "study":
            return 200, self.content_type, multipart(matching) if self.body is None else self.body
        offset = 0 if self.ignores_offset else int(parse_qs(parts.query)["offset"][0])
        rows = [_row(one) for one in matching[offset : offset + self.page]]
        return 200, "application/dicom+json", json.dumps(rows if self.listing is None else self.listing).encode()


def multipart(instances: Sequence[Dataset]) -> bytes:
    """Return instances as a multipart body."""
    head = f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + _part10(one) for one in instances)
    return body.removeprefix(b"\r\n") + f"\r\n--{BOUNDARY}--\r\n".encode()


@contextmanager
def running_web_archive(archive: WebArchive) -> Iterator[WebArchive]:
    """Run a service until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            archive.asked.append((self.path, self.headers["Accept"]))
            if archive.is_silent:
                archive.let_go.wait()
                return
            status, content_type, body = archive.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.end_headers()  # without a length: the body ends with the connection
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    archive.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield archive
    finally:
        archive.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _part10(instance: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, instance, enforce_file_format=True)
    return buffer.getvalue()


def _row(instance: Dataset) -> dict[str, Any]:
    keywords = {"00080016": "SOPClassUID", "00080018": "SOPInstanceUID", "0020000D": "StudyInstanceUID"}
    return {tag: {"vr": "UI", "Value": [str(instance[keyword].value)]} for tag, keyword in keywords.items()}
