"""No process outlives the one that started it, however early that dies."""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection

import psutil

from dicom_node.processes import die_with_parent

SPAWN = multiprocessing.get_context("spawn")


def start_and_die(say: Connection) -> None:
    """Start a child and die before it can ask the kernel for anything."""
    child = SPAWN.Process(target=ask_too_late)
    child.start()
    say.send(child.pid)
    os._exit(0)


def ask_too_late() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while os.getppid() == parent.pid:
        time.sleep(0.01)
    die_with_parent()
    time.sleep(600)


def test_a_process_whose_parent_died_before_it_asked_dies_too() -> None:
    hear, say = SPAWN.Pipe(duplex=False)
    parent = SPAWN.Process(target=start_and_die, args=(say,))
    parent.start()
    orphan = psutil.Process(hear.recv())
    parent.join(30)
    _, alive = psutil.wait_procs([orphan], timeout=60)
    for one in alive:
        one.kill()

    assert not alive
