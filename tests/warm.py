"""Interpreters that have imported torch before they begin.

A command of ours that needs torch spends five seconds of a processor on imports, and the tests start dozens of them.
Here each is a process of its own as ever, with its arguments, environment, working directory, output and exit code, but
a fork of one server a test process, which has imported everything once and ends with the test process.

What forks of one server share is the seed of their hashes: where two runs must not differ, one is to be an interpreter
that was started cold, or what hangs on the order of a set would never show. The entry points are what cold starts check
too: tests/trainer/test_fit.py, tests/trainer/data/test_prepare.py and tests/node/test_cli.py have them.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import types
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [__name__, "trainer.data.prepare", "trainer.evaluate", "trainer.finetune", "trainer.phantom.write",
     "trainer.pretrain", "trainer.publish", "worker.offline"]
)  # fmt: skip
_turn = threading.Lock()  # two threads that ask for the end of one process at once would take it from each other


def start(
    *command: object, cwd: Path | None = None, stdout: Path | None = None, stderr: Path | None = None
) -> ForkServerProcess:
    """Start `python -m module …` or `python -c code …`, here without `python`; it writes to these files or nowhere."""
    arguments = (
        [*map(str, command)],
        dict(os.environ),
        cwd or Path.cwd(),
        *(str(stream or os.devnull) for stream in (stdout, stderr)),
    )
    with _turn:
        process = _SERVER.Process(target=_interpret, args=arguments)
        process.start()
    return process


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Return what `start` started, ended: its exit code or minus the signal that ended it, and what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = start(*command, cwd=cwd, stdout=stdout, stderr=stderr)
        try:
            wait([process.sentinel])
        except BaseException:
            process.kill()
            raise
        finally:
            with _turn:
                process.join()
        written = [one.read_text() if one.exists() else "" for one in (stdout, stderr)]
    assert process.exitcode is not None
    return subprocess.CompletedProcess([*map(str, command)], process.exitcode, *written)


def _interpret(command: list[str], environment: dict[str, str], cwd: Path, stdout: str, stderr: str) -> None:
    """Be that interpreter."""
    for descriptor, path in ((1, stdout), (2, stderr)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    multiprocessing.set_start_method(None, force=True)  # as any interpreter begins: what it forks is not our server's
    option, what, *sys.argv[1:] = command
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert option == "-c", command
        sys.argv[0] = option
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(what, main.__dict__)
