"""What must hold whichever module of ours a process imports first."""

import subprocess
import sys

import pytest

_PRODUCT = "import torch; torch.nn.functional.linear(torch.ones(64, 96), torch.ones(288, 96), torch.ones(288))"


@pytest.mark.parametrize("first", ["model.clip.video", "model.clip.dicom", "worker.tasks"])
def test_matrix_products_survive_the_video_reader(first: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {first}; {_PRODUCT}"], capture_output=True, check=False)

    assert done.returncode == 0, done.stderr.decode()


def test_a_worker_loads_the_video_reader_with_the_first_video_only() -> None:
    done = subprocess.run([sys.executable, "-c", "import worker.tasks, sys; sys.exit('decord' in sys.modules)"],
                          capture_output=True, check=False)  # fmt: skip

    assert done.returncode == 0, done.stderr.decode()
