"""An acceptor keeps the memory of one image for the next."""

import subprocess
import sys

LOOPS = """
import resource, threading
{keep}
def come_and_go():
    for _ in range(3):
        b"".join([bytearray(131066) for _ in range(25)])
def in_threads(number):
    for _ in range(number):
        thread = threading.Thread(target=come_and_go)
        thread.start()
        thread.join()
in_threads(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
in_threads(20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_asked_for(keep: str) -> int:
    """Return how many pages 60 loops of 25 fragments, one after the other in 20 threads, ask of the system."""
    done = subprocess.run([sys.executable, "-c", LOOPS.format(keep=keep)], capture_output=True, check=True, text=True)
    return int(done.stdout)


def test_memory_that_was_freed_is_used_again_by_the_next_association() -> None:
    kept = pages_asked_for("from dicom_node.heap import keep_freed_memory; keep_freed_memory()")

    assert kept < 10_000  # 60 loops have 100,000, in their fragments and in one piece
