"""A real Orthanc as the PACS of the system tests: started on free ports with a folder of its own."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.binaries import free_port, missing, require_binary
from tests.doubles.certificates import Credentials
from tests.system.machines import HERE, Machine


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """A running Orthanc."""

    url: str
    ae_title: str
    dicom_port: int
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> Any:
        """Return the JSON of a GET."""
        answer = httpx.get(f"{self.url}{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def upload(self, part10: bytes) -> str:
        """Return Orthanc's id of an uploaded instance."""
        answer = httpx.post(f"{self.url}/instances", content=part10, timeout=60)
        answer.raise_for_status()
        return str(answer.json()["ID"])

    def send(self, modality: str, resources: list[str]) -> dict[str, Any]:
        """Send resources with Orthanc's own C-STORE and return what it says of it."""
        answer = self._store(modality, resources)
        answer.raise_for_status()
        return dict(answer.json())

    def try_to_send(self, modality: str, resources: list[str]) -> int:
        """Send resources where it may fail, and return the HTTP status that says so."""
        return self._store(modality, resources).status_code

    def _store(self, modality: str, resources: list[str]) -> httpx.Response:
        return httpx.post(
            f"{self.url}/modalities/{modality}/store",
            json={"Resources": resources, "Synchronous": True, "Timeout": 60},
            timeout=180,
        )

    def ask_to_commit(self, modality: str, **wanted: list[Any]) -> str:
        """Let Orthanc ask a modality for storage commitment; return its Transaction UID."""
        answer = httpx.post(f"{self.url}/modalities/{modality}/storage-commitment", json=wanted, timeout=60)
        answer.raise_for_status()
        return str(answer.json()["ID"])

    def find(self, **query: str) -> list[str]:
        """Return the ids of the instances whose tags match."""
        answer = httpx.post(f"{self.url}/tools/find", json={"Level": "Instance", "Query": query}, timeout=30)
        answer.raise_for_status()
        return list(answer.json())

    def file(self, instance: str) -> bytes:
        """Return an instance as Part 10 bytes."""
        answer = httpx.get(f"{self.url}/instances/{instance}/file", timeout=60)
        answer.raise_for_status()
        return answer.content


DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
"""Orthanc's plug-in that speaks DICOMweb, below /dicom-web/; Debian's orthanc-dicomweb."""


@contextmanager
def running_orthanc(
    folder: Path,
    *,
    node_ae: str,
    node_port: int,
    dicom_port: int,
    ae_title: str = "ORTHANC",
    plugins: tuple[Path, ...] = (),
    tls: Credentials | None = None,
    node_host: str = HERE.address,
    machine: Machine = HERE,
) -> Iterator[Orthanc]:
    """Run Orthanc with `node` as its one modality until the block ends; with TLS, and asking for it, if it has a
    certificate."""
    binary = require_binary("Orthanc")
    for plugin in plugins:
        if not plugin.exists():
            missing(f"{plugin} is not installed")
    http_port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "Name": "PACS",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "DicomAet": ae_title,
        "RemoteAccessAllowed": machine is not HERE,
        "AuthenticationEnabled": False,
        "DicomModalities": {
            "node": {"AET": node_ae, "Host": node_host, "Port": node_port, "UseDicomTls": tls is not None}
        },
        "DicomAlwaysAllowStore": True,
        "UnknownSopClassAccepted": True,
        "OverwriteInstances": False,
        "Plugins": [str(plugin) for plugin in plugins],
    }
    if tls is not None:
        configuration |= {
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(tls.certificate),
            "DicomTlsPrivateKey": str(tls.key),
            "DicomTlsTrustedCertificates": str(tls.ca),
            "DicomTlsRemoteCertificateRequired": True,
        }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration))
    log = (folder / "orthanc.log").open("wb")
    command = [*machine.prefix, binary, str(path)]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={"TCP_NODELAY": "1"})
    try:
        orthanc = Orthanc(
            url=f"http://{machine.address}:{http_port}", ae_title=ae_title, dicom_port=dicom_port, process=process
        )
        _wait_until_it_answers(orthanc, folder / "orthanc.log")
        yield orthanc
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _wait_until_it_answers(orthanc: Orthanc, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert orthanc.process.poll() is None, log.read_text()[-2000:]
        try:
            orthanc.get("/system")
        except httpx.TransportError:
            time.sleep(0.1)
            continue
        return
    raise AssertionError("Orthanc did not answer within 60 s")
