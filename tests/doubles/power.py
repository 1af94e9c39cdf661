"""A disk whose power is cut: what a process wrote, and what of it is there afterwards.

`journal.c` is preloaded into the process and writes down every change. Sure to be there is the content of a file as its
last fsync left it, under the names that the last fsync of its folder left; whatever came after may be there or not.
"""

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.binaries import require_binary

_HEAD = struct.Struct("<cQQLL")
_SYNC = ("S", "D")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One record of the journal."""

    operation: str
    """Create, Write, Truncate, Link, Rename, Unlink, Make a folder; fsync of a file (S), a folder (D); "!", a mark."""
    inode: int
    offset: int
    path: Path
    data: bytes


def run_recorded(root: Path, journal: Path, code: str, *arguments: str) -> None:
    """Run Python code in a process of its own whose changes below `root` are written down; it may end as it likes."""
    library = journal.with_suffix(".so")
    source = Path(__file__).with_name("journal.c")
    subprocess.run([require_binary("gcc"), "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "JOURNAL": str(journal), "JOURNAL_ROOT": str(root)}
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=False)


def mark(journal: Path, text: str) -> None:
    """Put a mark into the journal; called in the process that it is of."""
    with journal.open("ab") as file:
        file.write(_HEAD.pack(b"!", 0, 0, 0, len(text)) + text.encode())


def changes_in(journal: Path) -> list[Change]:
    """Return what was written down."""
    content, position, found = journal.read_bytes(), 0, []
    while position < len(content):
        operation, inode, offset, path_length, data_length = _HEAD.unpack_from(content, position)
        path_at = position + _HEAD.size
        data_at = path_at + path_length
        position = data_at + data_length
        found.append(
            Change(
                operation=operation.decode(),
                inode=inode,
                offset=offset,
                path=Path(content[path_at:data_at].decode()),
                data=content[data_at:position],
            )
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A moment in which the power goes."""

    marks: Sequence[str]
    """That were in the journal before."""
    disk: "_Folder"

    def leave(self, root: Path, chance: random.Random | None) -> None:
        """Make the folder `root` as it may be found: what is sure, and of the rest nothing, or each by chance."""
        self.disk.leave(root, chance)


def cuts(root: Path, changes: Iterable[Change]) -> Iterator[Cut]:
    """Give the moment before each fsync, where most is unsure, and after each mark, where a promise was given."""
    disk = _Folder()
    marks: list[str] = []
    files: dict[int, _File] = {}
    for change in changes:
        if change.operation in _SYNC:
            yield Cut(marks=[*marks], disk=disk)
        if change.operation == "!":
            marks.append(change.data.decode())
            yield Cut(marks=[*marks], disk=disk)
        else:
            disk.change(change, root, files)


def _applied(content: bytes, writes: Iterable[tuple[int, bytes | None]]) -> bytes:
    grown = bytearray(content)
    for offset, data in writes:
        if data is None:
            del grown[offset:]
            grown.extend(bytes(offset - len(grown)))
        else:
            grown.extend(bytes(max(0, offset - len(grown))))
            grown[offset : offset + len(data)] = data
    return bytes(grown)


@dataclass(kw_only=True)
class _File:
    sure: bytes = b""
    unsure: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Offset and bytes of each write; None: made as long as the offset."""

    def sync(self) -> None:
        self.sure, self.unsure = _applied(self.sure, self.unsure), []

    def leave(self, path: Path, chance: random.Random | None) -> None:
        path.write_bytes(_applied(self.sure, _some(self.unsure, chance)))


@dataclass(kw_only=True)
class _Folder:
    now: "dict[str, _Entry]" = field(default_factory=dict)
    sure: "dict[str, _Entry]" = field(default_factory=dict)
    unsure: "list[tuple[str, _Entry | None]]" = field(default_factory=list)
    """Name and what it stands for since; None: nothing."""

    def sync(self) -> None:
        self.sure, self.unsure = dict(self.now), []

    def put(self, name: str, entry: "_Entry | None") -> None:
        self.unsure.append((name, entry))
        self.now.pop(name, None)
        if entry is not None:
            self.now[name] = entry

    def leave(self, path: Path, chance: random.Random | None) -> None:
        path.mkdir()
        found = dict(self.sure)
        for name, entry in _some(self.unsure, chance):
            found.pop(name, None)
            if entry is not None:
                found[name] = entry
        for name, entry in found.items():
            entry.leave(path / name, chance)

    def find(self, path: Path) -> "_Folder":
        folder = self
        for name in path.parts:
            inner = folder.now[name]
            assert isinstance(inner, _Folder)
            folder = inner
        return folder

    def change(self, change: Change, root: Path, files: dict[int, _File]) -> None:
        path = change.path.relative_to(root)
        if change.operation == "D":
            self.find(path).sync()
            return
        folder, name = self.find(path.parent), path.name
        if change.operation == "C":
            if name not in folder.now:
                files[change.inode] = _File()
                folder.put(name, files[change.inode])
        elif change.operation == "M":
            folder.put(name, _Folder())
        elif change.operation == "U":
            folder.put(name, None)
        elif change.operation in ("L", "R"):
            target = Path(change.data.decode()).relative_to(root)
            entry = folder.now[name]
            if change.operation == "R":
                folder.put(name, None)
            self.find(target.parent).put(target.name, entry)
        elif change.operation == "S":
            files[change.inode].sync()
        else:
            files[change.inode].unsure.append((change.offset, change.data if change.operation == "W" else None))


_Entry = _File | _Folder


def _some(changes: Sequence[T], chance: random.Random | None) -> list[T]:
    return [] if chance is None else [one for one in changes if chance.random() < 0.5]
