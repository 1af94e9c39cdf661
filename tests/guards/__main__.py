"""`python -m tests.guards [WORD ...]`: 0 when every test failed without its guard."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.guards import ROOT, Guard, chosen

COPIED = ("dicom_node", "model", "worker", "trainer", "tests", "docker", "docs", "benchmarks", ".ci")
PATIENCE = 900  # seconds for one test
SEEN = 1  # pytest's exit code for tests that ran and failed


def main() -> int:
    """Try the chosen guards; return how many tests did not notice."""
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="echo-guards-") as name:
        folder = copy(Path(name) / "repository")
        for guard in chosen(sys.argv[1:]):
            verdict, reason = tried(folder, guard)
            survivors += verdict != "seen to fail"
            print(f"{verdict:13} {guard.test}  [{guard.file}]  {reason}", flush=True)
    return min(survivors, 100)


def copy(target: Path) -> Path:
    """Copy what the tests need; real files that lie beside the repository are beside the copy too."""
    target.mkdir()
    for name in COPIED:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, target)
    for path in ROOT.parent.iterdir():
        if path.is_dir() and path != ROOT and not (path / ".git").exists():
            (target.parent / path.name).symlink_to(path)
    return target


def tried(folder: Path, guard: Guard) -> tuple[str, str]:
    """Return what a guard's test says without it, and the first line of its reason."""
    with taken_out(folder / guard.file, guard):
        try:
            ran = subprocess.run(
                [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", guard.test],
                cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True, text=True, check=False, timeout=PATIENCE,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "seen to fail", f"no end in {PATIENCE} s"
    # Not every exit code of 1: a warning at the end of a session is one, too.
    if ran.returncode == SEEN and " failed" in ran.stdout:
        return "seen to fail", next(iter(re.findall(r"^E\s+(.{1,120})", ran.stdout, re.MULTILINE)), "")
    if ran.returncode in (0, SEEN):
        return "SURVIVED", "skipped" if " skipped" in ran.stdout else ""
    return "BROKEN", (ran.stdout + ran.stderr).strip().splitlines()[-1][:200]


@contextmanager
def taken_out(path: Path, guard: Guard) -> Iterator[None]:
    """Take a guard out of a file for the block."""
    whole = path.read_text()
    if whole.count(guard.old) != 1:
        raise SystemExit(f"{guard.place}: {guard.test}: its guard is not once in {guard.file}")
    path.write_text(whole.replace(guard.old, guard.new))
    try:
        yield
    finally:
        path.write_text(whole)


if __name__ == "__main__":
    sys.exit(main())
