"""Run the benchmarks that have an aim and write docs/benchmarks.md: what this prints is what the page says.

Of what is run, or named, the sections of the page are written anew, and the others stay.

    python benchmarks/run.py [NAME ...] [--page docs/benchmarks.md]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from side_by_side import short

HERE = Path(__file__).resolve().parent
NOT_RUN = {"run", "serving", "side_by_side"}
BY_NAME = {"training_memory", "workers"}
"""Run where they are named: they have no aim, and take ten minutes."""
LIMIT = 900
"""Seconds of one benchmark."""
_HEAD = ("| claim | ours | peer | median [quartiles] | samples | to reach |", "|---|---|---|---|---|---|")
_YES, _NO = ": yes |", ": **no** |"
VERSIONS = ("torch", "torchvision", "pynetdicom", "pydicom", "transformers", "celery", "sqlalchemy", "decord2")


@dataclass(kw_only=True)
class Ran:
    """One benchmark, after its run."""

    name: str
    first_line: str
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""


def run(path: Path) -> Ran:
    """Run a benchmark in a process of its own."""
    ran = Ran(name=path.stem, first_line=path.read_text().lstrip('"').split("\n", 1)[0].rstrip('"'))
    print(f"== {path.name}", flush=True)
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as results:
        begin = time.monotonic()
        command = [sys.executable, str(path), "--results", results.name]
        try:
            done = subprocess.run(command, timeout=LIMIT, stderr=subprocess.PIPE, text=True, check=False)
        except subprocess.TimeoutExpired:
            ran.failure = f"not done in {LIMIT} s"
        else:
            sys.stderr.write(done.stderr)
            lines = done.stderr.strip().splitlines()
            ran.failure = "" if done.returncode == 0 else (lines or [f"exit status {done.returncode}"])[-1]
        ran.seconds = time.monotonic() - begin
        ran.rows = [json.loads(line) for line in Path(results.name).read_text().splitlines()]
    return ran


def page(sections: dict[str, str]) -> str:
    """Return the page, of these sections by the name of their benchmark."""
    lines = "\n".join(sections.values()).splitlines()
    num_reached, num_missed = (sum(line.endswith(end) for line in lines) for end in (_YES, _NO))
    head = [
        "# Benchmarks",
        "",
        "Written by `make bench`; not by hand. Each line is one claim: ours and a named peer, measured in turn in one",
        "run (A B, B A, ...). The ratio is the median of the pairs' ratios, with their quartiles. Of a claim that is",
        "no ratio the figure itself is given, as reached or not.",
        "",
        f"On {_machine()}: {num_reached} of {num_reached + num_missed} aims reached.",
        *(
            [f"**Not measured:** {', '.join(missing)}."]
            if (missing := sorted(set(_benchmarks()) - set(sections)))
            else []
        ),
        "",
        f"Python {platform.python_version()}, {', '.join(_versions())}.",
    ]
    return "\n".join([*head, *(sections[name] for name in sorted(sections))])


def section(ran: Ran) -> str:
    """Return what the page says of one benchmark."""
    lines = [
        "",
        f"## {ran.name}",
        "",
        ran.first_line,
        "",
        f"`python benchmarks/{ran.name}.py`, {time.strftime('%Y-%m-%d')}: {ran.seconds:.0f} s",
    ]
    if ran.failure:
        lines += ["", f"**It failed:** {ran.failure}"]
    if ran.rows:
        lines += ["", *_HEAD, *(_line(row) for row in ran.rows)]
    return "\n".join([*lines, ""])


def sections_of(text: str) -> dict[str, str]:
    """Return the sections of a page as it was written."""
    _, *parts = text.split("\n## ")
    return {part.partition("\n")[0]: f"\n## {part.rstrip()}\n" for part in parts}


def _benchmarks() -> dict[str, Path]:
    return {path.stem: path for path in sorted(HERE.glob("*.py")) if path.stem not in NOT_RUN}


def _line(row: dict[str, Any]) -> str:
    figure = row["figure"]
    shown = "{} [{}, {}]".format(*(short(figure[key]) for key in ("median", "low", "high")))
    reach = f"{row['reach']}: {'yes' if row['is_reached'] else '**no**'}" if row["reach"] else ""
    cells = (row["claim"], row["ours"], row["peer"], shown + (" x" if row["peer"] else ""), row["num_samples"], reach)
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _machine() -> str:
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    processor = model[1] if model else platform.machine()
    return f"{os.cpu_count()} threads of {processor}, {memory:.0f} GiB, {' and '.join(gpus) or 'no GPU'}"


def _versions() -> list[str]:
    found = []
    for name in VERSIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Run those that have an aim, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--page", type=Path, help="write this page")
    options = parser.parse_args()
    found = _benchmarks()
    unknown = set(options.names) - set(found)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    every = [run(found[name]) for name in options.names or sorted(set(found) - BY_NAME)]
    if options.page:
        before = sections_of(options.page.read_text()) if options.page.exists() else {}
        kept = {name: text for name, text in before.items() if name in found}
        options.page.write_text(page(kept | {ran.name: section(ran) for ran in every}))
    for ran in every:
        if ran.failure:
            print(f"{ran.name} failed: {ran.failure}", file=sys.stderr)
    return int(any(ran.failure for ran in every))


if __name__ == "__main__":
    sys.exit(main())
