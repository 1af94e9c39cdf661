"""Packages of npm's registry that the tests use as they were published: fetched once a machine."""

import base64
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from tests.binaries import missing, require_binary


def published(name: str, version: str, integrity: str) -> Path:
    """Return the tarball of a package; skips (in CI: fails) where npm has it not.

    Args:
        name: of the package.
        version: of it.
        integrity: the tarball's SHA-512, as the registry publishes it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "echo-ai-node-tests"
    path = cache / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        _fetch(name, version, path)
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    assert digest == integrity, f"{path} is not what was published"
    return path


def _fetch(name: str, version: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [require_binary("npm"), "pack", f"{name}@{version}", "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        if done.returncode != 0:
            missing(f"{name} {version} is not to be had: {done.stderr[-500:]}")
        (Path(folder) / path.name).rename(path)
