"""A training step on the CPU that keeps the memory it frees, against one that leaves it to glibc.

The peer is the same loop of the trainer with glibc's own settings: PyTorch on the CPU as it comes. Both fine-tune the
small network on phantoms, pair by pair, so that a noisy neighbour meets both.

    python benchmarks/training_memory.py [--pairs 3] [--steps 30]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

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
    """Make a store of phantoms and print the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run("-m", "trainer", "phantom", "--layout", "echonet", "--cases", 60, "--seed", 1, "--out", out / "data")
        run("-m", "trainer", "prepare", "echonet", out / "data", "--out", out / "store", "--config", "small",
            "--format", "raw")  # fmt: skip
        for pair in range(options.pairs):
            pace = {}
            for way in ("glibc", "kept"):
                target = out / f"{way}-{pair}"
                run("-c", RUN, out / "store", target, options.steps, way)
                pace[way] = clips_per_second(target)
            ratios.append(pace["kept"] / pace["glibc"])
            print(f"pair {pair + 1}: {pace['glibc']:.1f} and {pace['kept']:.1f} clips/s, {ratios[-1]:.2f} times")
    print(f"freed memory kept: {statistics.median(ratios):.2f} times glibc's own settings (median of {len(ratios)})")


if __name__ == "__main__":
    main()
