"""Memory that a training step frees is there for the next one."""

import subprocess
import sys

FAULTS = """
import resource
import torch
from trainer.heap import keep_freed_memory
{setting}
def step():
    torch.empty(16 * 2**20).fill_(1.0)  # 64 MB, more than any batch's float32
for _ in range(20):  # glibc tries several places before it comes back to one
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * 64 * 2**20 // 4096


def faults(setting: str) -> int:
    """Return the pages that ten steps of the same memory asked of the kernel."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(setting=setting)],
                          capture_output=True, text=True, check=True)  # fmt: skip
    return int(done.stdout)


def test_a_step_that_comes_again_asks_the_kernel_for_no_memory() -> None:
    """Without the setting every step asks for all of its pages; with it for none."""
    assert faults("keep_freed_memory()") < PAGES / 100 < faults("")
