"""A training step on the CPU that keeps the memory it frees, against one that leaves it to glibc.

The peer is the same loop of the trainer with glibc's own settings: PyTorch on the CPU as it comes. Both fine-tune the
small network on phantoms, pair by pair, so that a noisy neighbour meets both.

    python benchmarks/training_memory.py [--pairs 3] [--steps 30]
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from side_by_side import Results, Side, parser

ROOT = Path(__file__).parents[1]
RUN = """
import sys
from pathlib import Path
from trainer.config import FinetuneConfig, resolve
from trainer.finetune import finetune
from trainer.heap import keep_freed_memory
if sys.argv[4] == "kept":
    keep_freed_memory()
settings = ["precision=fp32", "net.tubelet=4", f"max_steps={sys.argv[3]}"]
config = resolve(FinetuneConfig, "small", settings, {"tasks": ["lvef"], "epochs": 100, "seed": 0})
finetune([Path(sys.argv[1])], Path(sys.argv[2]), config, resume=False, command=())
"""


def run(*command: object) -> None:
    """Run a command on one core."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])


def clips_per_second(out: Path) -> float:
    """Return the pace of a run."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return float([line["clips_per_second"] for line in lines if "clips_per_second" in line][-1])


def main() -> None:
    """Make a store of phantoms and add the ratio."""
    options_of = parser(__doc__)
    options_of.add_argument("--pairs", type=int, default=3)
    options_of.add_argument("--steps", type=int, default=30)
    options = options_of.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run("-m", "trainer", "phantom", "--layout", "echonet", "--cases", 60, "--seed", 1, "--out", out / "data")
        run("-m", "trainer", "prepare", "echonet", out / "data", "--out", out / "store", "--config", "small",
            "--format", "raw")  # fmt: skip
        numbers = itertools.count()

        def pace(way: str) -> float:
            target = out / f"{way}-{next(numbers)}"
            run("-c", RUN, out / "store", target, options.steps, way)
            return clips_per_second(target)

        Results(options.results).compare(
            "fine-tuning on the CPU, freed memory kept",
            Side(name="ours", measure=lambda: pace("kept")),
            Side(name="glibc's own settings", measure=lambda: pace("glibc")),
            unit="clips/s",
            is_rate=True,
            pairs=options.pairs,
        )


if __name__ == "__main__":
    main()
