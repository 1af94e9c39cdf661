"""The trainer's commands as the experiments call them, and what they do with the answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
RESAMPLES = 2000


def trainer(*arguments: object) -> None:
    """Run one of the trainer's commands on one core."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])}: {done.stderr[-2000:]}")


def settings(*values: str) -> list[str]:
    """Return --set options."""
    return [part for value in values for part in ("--set", value)]


def is_done(run: Path) -> bool:
    """Return whether a run is finished."""
    file = run / "run.json"
    return file.exists() and json.loads(file.read_text())["status"] == "done"


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over resampled patients."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
