"""An object store: rclone, which serves a folder as S3, and which a test stops and starts again."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from dicom_node.objects import ObjectStore
from dicom_node.settings import Objects
from tests.binaries import free_port, require_binary
from tests.doubles.certificates import Credentials

KEY, SECRET = "echo-key", "correct-horse-battery"
BUCKET = "echo"


@dataclass(kw_only=True)
class ObjectServer:
    """A server with one bucket; `start` starts it, again too."""

    folder: Path
    port: int
    certificate: Credentials | None = None
    """Of an https endpoint."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the section [objects] that leads here."""
        scheme = "http" if self.certificate is None else "https"
        return {
            "url": f"s3://{BUCKET}/node-1",
            "endpoint": f"{scheme}://127.0.0.1:{self.port}",
            "key": KEY,
            "secret": SECRET,
        }

    def connect(self, **other: Any) -> ObjectStore:
        """Return a client, with these settings in place of the right ones."""
        return ObjectStore(Objects(**{**self.settings, **other}))

    def objects(self) -> set[str]:
        """Return the names of all objects, as they lie on the server's disk."""
        root = self.folder / BUCKET / "node-1"
        return {str(one.relative_to(root)) for one in root.rglob("*") if one.is_file()}

    def start(self) -> None:
        """Start it, and return once it answers."""
        options = ["--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{self.port}", "--config", "/dev/null"]
        if self.certificate is not None:
            options += ["--cert", str(self.certificate.certificate), "--key", str(self.certificate.key)]
        rclone = require_binary("rclone", str(Path(sys.executable).parent))
        self.process = subprocess.Popen([rclone, "serve", "s3", *options, str(self.folder)], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while True:
            try:
                httpx.get(self.settings["endpoint"], timeout=5, verify=False)  # whether it answers
            except httpx.TransportError:
                assert time.monotonic() < end, "rclone does not answer"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop it; what it has stays on its disk."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None


@contextmanager
def running_objects(folder: Path, certificate: Credentials | None = None) -> Iterator[ObjectServer]:
    """Run an object store with an empty bucket until the block ends."""
    (folder / BUCKET).mkdir(parents=True)
    server = ObjectServer(folder=folder, port=free_port(), certificate=certificate)
    server.start()
    try:
        yield server
    finally:
        server.stop()
