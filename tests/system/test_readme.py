"""What the README says to type, typed: its configuration, its commands, Orthanc as the PACS."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from tests.binaries import require_binary
from tests.system.machines import network
from tests.system.orthanc import running_orthanc
from tests.system.studies import part10, phantom_study

pytestmark = pytest.mark.timeout(600)

README = (Path(__file__).parents[2] / "README.md").read_text()
PACS = "192.0.2.10"
"""As the README has it."""
T = TypeVar("T")


def test_a_node_that_is_run_as_the_readme_says_reads_a_study_of_the_pacs_and_answers_it(tmp_path: Path) -> None:
    """On a machine of its own, with the addresses, ports and folders that stand there."""
    (configuration,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    (modality,) = re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL)
    check, serve = commands("dicom-node check-config", "dicom-node serve")
    (tmp_path / "node.toml").write_text(configuration)
    ae_title, _, port = json.loads(f"{{{modality}}}")["DicomModalities"]["node"]

    with network("hospital") as machines:
        machine = machines["hospital"]
        subprocess.run([*machine.prefix, require_binary("ip"), "address", "add", f"{PACS}/32", "dev", "lo"], check=True)
        # The folder of data is a new machine's: empty, and gone with it.
        alone = f"mount -t tmpfs tmpfs /var/lib && cd {tmp_path} && {check} && exec {serve}"
        with (
            running_orthanc(
                tmp_path / "pacs", node_ae=ae_title, node_port=port, node_host=PACS, dicom_port=4242, machine=machine
            ) as pacs,
            (tmp_path / "log").open("wb") as log,
        ):
            node = subprocess.Popen(
                [*machine.prefix, require_binary("unshare"), "--mount", "sh", "-c", alone],
                stdout=log,
                stderr=log,
                env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            )
            try:
                until(lambda: listens(machine.address, port), tmp_path / "log")
                study = phantom_study(seed=1)
                sent = pacs.send("node", [pacs.upload(part10(one)) for one in study])
                (report,) = until(lambda: pacs.find(Modality="SR") or None, tmp_path / "log")
                look = "import sys, urllib.request as web; print(web.urlopen(sys.argv[1]).read().decode())"
                (address,) = re.findall(r"<(http://127[^>]+)>", README)
                page = subprocess.run(
                    [*machine.prefix, sys.executable, "-c", look, address], capture_output=True, text=True, check=True
                ).stdout
            finally:
                node.send_signal(signal.SIGTERM)
                ended = node.wait(90)
            reported = pacs.get(f"/instances/{report}/simplified-tags")["StudyInstanceUID"]

    assert sent["FailedInstancesCount"] == 0
    assert reported == study[0].StudyInstanceUID
    assert study[0].StudyInstanceUID in page
    assert ended == 0


def commands(*beginnings: str) -> list[str]:
    """Return the commands of the README that begin so: one each."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()]
    found = []
    for beginning in beginnings:
        (line,) = (line for line in lines if line.startswith(beginning))
        found.append(line)
    return found


def listens(address: str, port: int) -> bool | None:
    """Return whether somebody does."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except ConnectionRefusedError:
        return None
    return True


def until(probe: Callable[[], T | None], log: Path) -> T:
    """Return the probe's first answer."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        try:
            answer = probe()
        except httpx.TransportError:
            answer = None
        if answer is not None:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"not in time\n{log.read_text()[-4000:]}")
