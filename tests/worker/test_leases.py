"""A process that hangs ends; one that gets on keeps what it holds."""

import subprocess
import sys
import textwrap
from datetime import timedelta

from worker.leases import beating
from worker.settings import Limits

# A regular expression that backtracks for longer than the universe lasts holds the interpreter's lock all the while.
HANGS = {
    "a wait": "time.sleep(600)",
    "a reader that holds the interpreter": "re.match(r'(a+)+$', 'a' * 64 + 'b')",
}


def run(body: str) -> subprocess.CompletedProcess[str]:
    """Run a process that holds a lease, whose loops may take half a second."""
    script = f"""
    import re, time
    from datetime import timedelta
    from dicom_node.logs import configure_logs
    from worker.leases import beating
    from worker.settings import Limits

    configure_logs()
    limits = Limits(loop=timedelta(seconds=0.5), heartbeat=timedelta(seconds=0.1))
    with beating(lambda: None, limits) as heartbeat:
        {body}
    print("went on")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_process_whose_loop_hangs_ends() -> None:
    ended = {name: run(body) for name, body in HANGS.items()}

    assert {name: one.returncode for name, one in ended.items()} == dict.fromkeys(HANGS, 1)
    assert all("most recent call first" in one.stderr for one in ended.values())
    assert "loop_hung" in ended["a wait"].stdout + ended["a wait"].stderr


def test_a_process_that_gets_on_from_loop_to_loop_does_not() -> None:
    ended = run("[(time.sleep(0.2), heartbeat.step()) for _ in range(6)]; time.sleep(0.2)")

    assert (ended.returncode, ended.stdout.strip().splitlines()[-1]) == (0, "went on")


def test_nothing_watches_after_the_block() -> None:
    with beating(lambda: None, Limits(loop=timedelta(seconds=0.1), heartbeat=timedelta(seconds=0.01))):
        pass
    ended = run("pass\n    time.sleep(2)")

    assert (ended.returncode, ended.stdout.strip().splitlines()[-1]) == (0, "went on")
