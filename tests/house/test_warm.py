"""What is started warm is as what is started cold: by its arguments, place, environment, output and end."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import warm

ROOT = Path(__file__).parents[2]
SHOWS = """
import os, sys
print(sys.argv, __name__, os.getcwd(), os.environ.get("WARM"), os.environ.get("PWD"), sys.stdin.read())
print("and this", file=sys.stderr)
sys.exit(3)
"""


def test_it_is_called_and_answers_as_python_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARM", "a tea pot")
    monkeypatch.delenv("PWD", raising=False)
    command = ["-c", SHOWS, "one", "two words"]

    ended = warm.run(*command, cwd=tmp_path)

    cold = subprocess.run([sys.executable, *command], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, cold.stdout, cold.stderr)
    assert "a tea pot" in ended.stdout


@pytest.mark.parametrize(("command", "code"), [(["--version"], 0), (["nonsense"], 2), (["prepare", "ucg"], 2)])
def test_a_command_says_the_same_and_ends_the_same(tmp_path: Path, command: list[str], code: int) -> None:
    ended = warm.run("-m", "trainer", *command, cwd=tmp_path)

    cold = subprocess.run([sys.executable, "-m", "trainer", *command], cwd=tmp_path, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, cold.stdout, cold.stderr)


def test_a_signal_and_a_traceback_end_it(tmp_path: Path) -> None:
    killed = warm.run("-c", "import os; os.kill(os.getpid(), 9)")
    raised = warm.run("-c", "raise ValueError('of its own')")

    assert killed.returncode == -signal.SIGKILL
    assert raised.returncode == 1
    assert raised.stderr.endswith("ValueError: of its own\n")


def test_the_imports_are_there_before_it_begins() -> None:
    """An ImportError of what is to be imported before would go unnoticed, and every start would cost its seconds."""
    code = "import sys; assert {'torch', 'trainer.finetune', 'trainer.publish', 'worker.offline'} <= {*sys.modules}"

    assert warm.run("-c", code).stderr == ""


def test_the_server_ends_with_the_test_process() -> None:
    code = "from tests import warm; print(warm.run('-c', 'import os; print(os.getppid())').stdout)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    server = int(ended.stdout)

    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(server).wait(60)  # raises if it is still there
