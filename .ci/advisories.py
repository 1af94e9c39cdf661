"""Is a version that constraints.txt pins known to be vulnerable? Part of `make check`; exit 1 if one is.

Asks OSV (https://osv.dev, which holds PyPI's and GitHub's advisories). Where it cannot be reached, says so and looks
into the list beside this file instead, which is as old as it says. What is accepted, is so by name and with a reason.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import httpx
from packaging.utils import canonicalize_name
from packaging.version import Version

SERVICE = "https://api.osv.dev/v1/querybatch"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
LIST = Path(__file__).with_name("advisories.json")
_SECONDS = 10.0

Pins = dict[str, str]
Found = list[tuple[str, str]]
"""Package and advisory."""


def main(arguments: list[str] | None = None) -> int:
    """Print what is known of the pins; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--constraints", type=Path, default=CONSTRAINTS)
    parser.add_argument("--list", type=Path, default=LIST)
    parser.add_argument("--service", default=SERVICE)
    options = parser.parse_args(arguments)
    pins = read_pins(options.constraints)
    known = json.loads(options.list.read_text())
    try:
        found, by = ask(options.service, pins), "OSV"
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        found, by = look_up(known, pins), f"the list of {known['as_of']}, which knows nothing newer"
        print(f"advisories: NOT ASKED: OSV does not answer ({type(error).__name__}: {str(error)[:120]})")
    reasons = {(canonicalize_name(one["package"]), one["id"]): one["reason"] for one in known["accepted"]}
    for package, advisory in found:
        reason = reasons.get((package, advisory))
        says = f"accepted: {reason}" if reason else f"VULNERABLE: see https://osv.dev/{advisory}, raise the pin"
        print(f"advisories: {package} {pins[package]}: {advisory} {says}")
    num_open = sum(one not in reasons for one in found)
    print(f"advisories: {len(pins)} pins, {num_open} vulnerable, by {by}")
    return 1 if num_open else 0


def read_pins(path: Path) -> Pins:
    """Return the versions that constraints.txt names."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", path.read_text(), flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def ask(service: str, pins: Pins) -> Found:
    """Return what OSV knows of the pins.

    Raises:
        httpx.HTTPError, ValueError, KeyError, TypeError: it does not answer, or not in its own form.
    """
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in pins.items()]
    answer = httpx.post(service, json={"queries": queries}, timeout=_SECONDS)
    answer.raise_for_status()
    results = answer.json()["results"]
    if len(results) != len(pins):
        raise ValueError(f"{len(results)} answers to {len(pins)} questions")
    return [(name, vuln["id"]) for name, result in zip(pins, results, strict=True) for vuln in result.get("vulns", [])]


def look_up(known: dict[str, Any], pins: Pins) -> Found:
    """Return what the list says of the pins: vulnerable from `introduced` to before `fixed`, or for good."""
    found = []
    for one in known["advisories"]:
        package = canonicalize_name(one["package"])
        if package in pins and _is_affected(Version(pins[package]), one):
            found.append((package, one["id"]))
    return found


def _is_affected(version: Version, one: dict[str, str]) -> bool:
    is_fixed = "fixed" in one and version >= Version(one["fixed"])
    return version >= Version(one.get("introduced", "0")) and not is_fixed


if __name__ == "__main__":
    sys.exit(main())
