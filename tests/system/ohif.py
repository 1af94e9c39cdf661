"""OHIF, a viewer of hospitals, as a peer of the tests: its own build, served on loopback beside a PACS's DICOMweb."""

import json
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.system.chromium import Tab
from tests.system.npm import published

VERSION = "3.13.2"
_INTEGRITY = "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
"""The tarball's SHA-512, as npm's registry publishes it."""

_DICOMWEB = "/dicom-web"
_CONFIGURATION = {
    "routerBasename": "/",
    "extensions": [],
    "modes": [],
    "showStudyList": True,
    "investigationalUseDialog": {"option": "never"},
    "maxNumberOfWebWorkers": 2,
    "defaultDataSourceName": "pacs",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "pacs",
            "configuration": {
                "friendlyName": "PACS",
                "name": "pacs",
                "qidoRoot": _DICOMWEB,
                "wadoRoot": _DICOMWEB,
                "wadoUriRoot": _DICOMWEB,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "omitQuotationForMultipartRequest": True,
            },
        }
    ],
}


@contextmanager
def running_ohif(dicomweb_of: str) -> Iterator[str]:
    """Serve OHIF with the DICOMweb of the server at this URL as its one source until the block ends; give its URL."""
    tarball = published("@ohif/app", VERSION, _INTEGRITY)
    # A connection is used once: Orthanc ends one that waits, at times as it is asked again.
    client = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
    with tempfile.TemporaryDirectory(prefix="ohif-") as folder, client:
        with tarfile.open(tarball) as archive:
            archive.extractall(folder, members=_needed(archive), filter="data")
        dist = Path(folder) / "package" / "dist"
        (dist / "app-config.js").write_text(f"window.config = {json.dumps(_CONFIGURATION)};")
        handler = partial(_Handler, dist=dist, pacs=dicomweb_of, client=client)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever, name="ohif")
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()


def open_study(tab: Tab, url: str, study_uid: str) -> None:
    """Open the study in OHIF at this URL; its first loop is drawn."""
    # A PDF's own frame has no storage.
    tab.page.add_init_script("globalThis.localStorage?.setItem('shownTours', '[\"basicViewerTour\"]')")
    tab.page.goto(f"{url}/viewer?StudyInstanceUIDs={study_uid}")
    tab.page.locator("[data-cy=viewport-overlay-bottom-left]", has_text="W:").wait_for()
    tab.wait_until_idle()


def open_series(tab: Tab, modality: str, number: int) -> None:
    """Open, as a user does, the first image or document of the series of this modality and number."""
    label = tab.page.locator("[data-cy=series-modality-label]").get_by_text(modality, exact=True)
    series = tab.page.locator("[data-cy^=study-browser-thumbnail]").filter(has=label, has_text=f"S:{number}")
    series.first.dblclick()


class _Handler(SimpleHTTPRequestHandler):
    """Answers with a file of OHIF, with what the PACS answers, or with index.html, whose script reads the path."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: object, dist: Path, pacs: str, client: httpx.Client) -> None:
        self._dist, self._pacs, self._client = dist, pacs, client
        super().__init__(*args, directory=str(dist))  # type: ignore[arg-type]  # the server's own three

    def handle(self) -> None:
        with suppress(ConnectionError):  # the viewer hangs up when the user goes on to another loop
            super().handle()

    def do_GET(self) -> None:
        if self.path.startswith(f"{_DICOMWEB}/"):
            self._forward()
            return
        if not Path(self.translate_path(self.path)).is_file():
            self.path = "/index.html"
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""

    def _forward(self) -> None:
        # Orthanc writes its URLs with the host that it is asked as.
        headers = {name: self.headers[name] for name in ("Accept", "Host")}
        answer = self._client.get(f"{self._pacs}{self.path}", headers=headers)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)


def _needed(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Return what a study needs: without the networks of the segmentation tools, two thirds of all."""
    return [one for one in archive if not one.name.startswith("package/dist/ort/")]
