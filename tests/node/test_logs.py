"""What may stand in the log, and what may not."""

import subprocess
import sys
from pathlib import Path

ODD = """
from dicom_node.logs import configure_logs
configure_logs()
from pydicom import Dataset
from highdicom.valuerep import check_person_name
dataset = Dataset()
dataset.PatientBirthDate = "31.12.SECRET"
check_person_name("SECRET")
print("done")
"""


def test_what_libraries_warn_about_odd_values_is_not_written() -> None:
    done = subprocess.run([sys.executable, "-c", ODD], capture_output=True, text=True, check=True)

    assert done.stdout == "done\n"
    assert "SECRET" not in done.stderr


def test_an_event_is_one_line_of_json_with_its_fields() -> None:
    program = (
        "import structlog; from dicom_node.logs import configure_logs; configure_logs();"
        "structlog.get_logger().info('instance_kept', study=17)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    (line,) = done.stderr.splitlines()
    assert '"event": "instance_kept"' in line
    assert '"study": 17' in line


FULL = """
import logging
import structlog
from dicom_node.logs import configure_logs
configure_logs()
log = structlog.get_logger()
log.info("study_completed", study=1)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("tick_failed")
logging.getLogger("pynetdicom").error("an error")
print("done", flush=True)
"""


def test_a_log_on_a_full_disk_stops_nobody() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", FULL], stdout=subprocess.PIPE, stderr=full, text=True, check=False)

    assert done.stdout == "done\n"


NONSENSE = """
import logging
import threading
from dicom_node.logs import configure_logs, log_thread
configure_logs()
threading.excepthook = log_thread
try:
    int("SECRET^NAME")
except ValueError as error:
    logging.getLogger("pynetdicom.dul").exception("x" * 5000)
threading.Thread(target=lambda: int("SECRET^NAME")).start()
"""


def test_what_a_peer_may_make_the_libraries_say_is_one_short_line_each() -> None:
    """A traceback for each PDU that makes no sense would fill a disk, at the peer's will."""
    done = subprocess.run([sys.executable, "-c", NONSENSE], capture_output=True, text=True, check=True)

    said, ended = done.stderr.splitlines()
    assert len(said) < 300
    assert '"event": "thread_failed"' in ended
    assert '"reason": "ValueError"' in ended
    assert "SECRET" not in done.stderr
