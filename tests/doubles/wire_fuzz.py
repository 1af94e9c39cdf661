"""Conversations of the upper layer and DIMSE, valid ones and what a number makes of them; it shares no code with ours.

A conversation is a tree: PDUs (PS3.8 9.3) of items or of presentation data values, of command elements (PS3.7 6.3).
Damage is done to the tree, where each node knows what it claims to be, and to the bytes that it becomes.
"""

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from itertools import pairwise

from tests.doubles.datasets import encoded, loop
from tests.doubles.wire_peer import (
    ABORT,
    APPLICATION_CONTEXT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    ASSOCIATE_RQ,
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    JPEG_BASELINE,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    US_MULTIFRAME,
    VERIFICATION,
)

_COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
_PRIVATE = "1.2.276.0.7230010.3.1.0.1"
_COMMITMENT = "1.2.840.10008.1.20.1"
_CLASSES = (US_MULTIFRAME, US_MULTIFRAME, US_MULTIFRAME, _COMPREHENSIVE_SR, _PRIVATE)
_SYNTAXES = (EXPLICIT_LITTLE, EXPLICIT_LITTLE, IMPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED, JPEG_BASELINE)
_REQUESTS = {  # PS3.7 table E.1-1
    "C-STORE": 0x0001,
    "C-GET": 0x0010,
    "C-FIND": 0x0020,
    "C-MOVE": 0x0021,
    "C-ECHO": 0x0030,
    "N-EVENT-REPORT": 0x0100,
    "N-GET": 0x0110,
    "N-SET": 0x0120,
    "N-ACTION": 0x0130,
    "N-CREATE": 0x0140,
    "N-DELETE": 0x0150,
    "C-CANCEL": 0x0FFF,
}
_PLACEHOLDER = "1.2.826.0.1.7.10000000000.100"
_NO_DATA_SET = 0x0101
_COMMAND, _LAST = 1, 2


class Ending(Enum):
    """What the peer does when it has said all."""

    HALF_CLOSED = 0
    """It says so, and reads to the end."""
    CLOSED = 1
    RESET = 2


@dataclass
class Block:
    """One thing with a header that says how long it is."""

    layout: str
    """Struct of the header; its length stands where the L, or the last H, is."""
    head: list[int]
    """The fields of the header without its length."""
    parts: "list[Block | bytes]"
    claim: int | None = None
    """The length that the header says; None: the true one."""

    def encode(self) -> bytes:
        """Return the bytes."""
        body = b"".join(part if isinstance(part, bytes) else part.encode() for part in self.parts)
        length = (len(body) + 2 * (self.layout == _PDV)) if self.claim is None else self.claim
        width = 16 if self.layout == _ITEM else 32
        length &= (1 << width) - 1
        fields = [length, *self.head] if self.layout == _PDV else [*self.head, length]
        return struct.pack(self.layout, *fields) + body

    def walk(self) -> "Iterator[Block]":
        """Yield the node and all below it."""
        yield self
        for part in self.parts:
            if isinstance(part, Block):
                yield from part.walk()


_PDU, _ITEM, _PDV, _ELEMENT = ">BBL", ">BBH", ">LBB", "<HHL"


@dataclass
class Conversation:
    """What a peer sends, and when it waits for an answer."""

    seed: int
    steps: list[bytes] = field(default_factory=list)
    """Bytes that are sent at once; between two of them the peer waits for an answer."""
    ending: Ending = Ending.HALF_CLOSED
    is_damaged: bool = False
    num_stores: int = 0
    """In a valid one: C-STOREs that must be answered with Success."""

    @property
    def sent(self) -> bytes:
        """Return all bytes."""
        return b"".join(self.steps)


def conversation(seed: int) -> Conversation:
    """Return the conversation of this number: a tenth of them is valid."""
    rng = random.Random(seed)
    is_valid = rng.random() < 0.1
    made = _Maker(rng, seed, is_served=is_valid)
    pdus = made.conversation()
    result = Conversation(seed=seed, num_stores=made.num_stores)
    if is_valid:
        result.steps = [pdu.encode() for pdu in pdus]
        return result
    result.is_damaged = True
    if rng.random() < 0.8:
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            rng.choice(_TREE_DAMAGES)(rng, pdus)
    steps = [pdu.encode() for pdu in pdus]
    if rng.random() < 0.4:
        steps = _damaged_bytes(rng, steps)
    if rng.random() < 0.15:  # pipelined
        steps = [b"".join(steps)]
    if rng.random() < 0.05:  # another one after it, over the same connection
        steps += [pdu.encode() for pdu in _Maker(rng, seed, is_served=False).conversation()]
    result.steps = steps
    result.ending = rng.choices([*Ending], (8, 1, 1))[0]
    return result


class _Maker:
    """Makes a valid conversation, of requests that the node serves, or of any."""

    def __init__(self, rng: random.Random, seed: int, *, is_served: bool) -> None:
        self._rng = rng
        self._seed = seed
        self._weights = (40, *(0,) * 3, 10, *(0,) * 7) if is_served else (40, 1, 2, 1, 10, 1, 1, 1, 2, 1, 1, 1)
        self._message = 0
        self.num_stores = 0

    def conversation(self) -> list[Block]:
        rng = self._rng
        contexts = [(VERIFICATION, IMPLICIT_LITTLE)]
        contexts += [(rng.choice(_CLASSES), rng.choice(_SYNTAXES)) for _ in range(rng.randint(1, 4))]
        pdus = [self._request(contexts)]
        for _ in range(rng.choice((1, 1, 2, 3))):
            pdus += self._message_pdus(contexts)
        return [*pdus, Block(_PDU, [RELEASE_RQ, 0], [bytes(4)])]

    def _request(self, contexts: Sequence[tuple[str, str]]) -> Block:
        rng = self._rng
        items: list[Block | bytes] = [_item(0x10, APPLICATION_CONTEXT.encode())]
        for index, (abstract, syntax) in enumerate(contexts):
            proposed = [_item(0x30, abstract.encode()), _item(0x40, syntax.encode())]
            items.append(_item(0x20, bytes((2 * index + 1, 0, 0, 0)), *proposed))
        user: list[Block | bytes] = [
            _item(0x51, struct.pack(">L", rng.choice((0, 16384, 131072)))),
            _item(0x52, b"1.2.826.0.1.77"),
        ]
        sop = US_MULTIFRAME.encode()
        optional = [
            _item(0x53, struct.pack(">HH", 1, 1)),
            _item(0x54, struct.pack(">H", len(sop)) + sop + b"\1\0"),
            _item(0x55, b"FUZZ"),
            _item(0x56, struct.pack(">H", len(sop)) + sop + b"\2\1\0\0\0\0"),
            _item(0x57, struct.pack(">H", len(sop)) + sop + struct.pack(">H", 17) + b"1.2.840.10008.4.2\0\0"),
            _item(0x58, b"\1\0\0\3abc\0\0"),
        ]
        user += rng.sample(optional, rng.randrange(len(optional))) if rng.random() < 0.3 else []
        items.append(_item(0x50, *user))
        titles = b"ECHONODE".ljust(16) + b"FUZZ".ljust(16)
        return Block(_PDU, [ASSOCIATE_RQ, 0], [struct.pack(">HH", 1, 0) + titles + bytes(32), *items])

    def _message_pdus(self, contexts: Sequence[tuple[str, str]]) -> list[Block]:
        rng = self._rng
        index = rng.randrange(len(contexts))
        kind = rng.choices([*_REQUESTS], self._weights)[0]
        self._message += 1
        if kind == "C-STORE" and index == 0:
            index = 1
        if kind == "C-ECHO":
            index = 0
        abstract, syntax = contexts[index]
        has_data = kind not in ("C-ECHO", "C-CANCEL", "N-GET", "N-DELETE")
        sop_class = _COMMITMENT if kind in ("N-ACTION", "N-EVENT-REPORT") else abstract
        instance = f"1.2.826.0.1.7.{10_000_000_000 + self._seed}.{100 + self._message}"
        elements = {0x0100: struct.pack("<H", _REQUESTS[kind]), 0x0110: struct.pack("<H", self._message)}
        elements[0x0800] = struct.pack("<H", 0 if has_data else _NO_DATA_SET)
        elements[0x0003 if kind in ("N-ACTION", "N-GET", "N-SET", "N-DELETE") else 0x0002] = _even(sop_class)
        if kind in ("C-STORE", "C-FIND", "C-GET", "C-MOVE"):
            elements[0x0700] = struct.pack("<H", rng.randrange(3))
        if kind == "C-STORE":
            elements[0x1000] = _even(instance)
        if kind in ("N-ACTION", "N-GET", "N-SET", "N-DELETE"):
            elements[0x1001] = _even(instance)
        if kind == "N-ACTION":
            elements[0x1008] = struct.pack("<H", 1)
        if kind == "N-EVENT-REPORT":
            elements[0x1000], elements[0x1002] = _even(instance), struct.pack("<H", 1)
        if kind == "C-MOVE":
            elements[0x0600] = b"ELSEWHERE "
        if kind == "C-CANCEL":
            del elements[0x0110]
            elements[0x0120] = struct.pack("<H", 1)
        self.num_stores += kind == "C-STORE"
        command = self._command(elements)
        pdvs = [Block(_PDV, [2 * index + 1, _COMMAND | _LAST], [*command])]
        if has_data:
            pdvs += self._data(_dataset(instance, abstract, syntax, self._seed), 2 * index + 1)
        return self._in_pdus(pdvs)

    def _command(self, elements: dict[int, bytes]) -> list[Block]:
        blocks = [Block(_ELEMENT, [0, element], [value]) for element, value in sorted(elements.items())]
        length = sum(len(block.encode()) for block in blocks)
        return [Block(_ELEMENT, [0, 0], [struct.pack("<L", length)]), *blocks]

    def _data(self, content: bytes, context: int) -> list[Block]:
        rng = self._rng
        num_pieces = rng.choice((1, 1, 2, 3, 8))
        cuts = [0, *sorted(rng.sample(range(1, len(content)), num_pieces - 1)), len(content)]
        pieces = [content[start:end] for start, end in pairwise(cuts)]
        return [Block(_PDV, [context, _LAST * (piece is pieces[-1])], [piece]) for piece in pieces]

    def _in_pdus(self, pdvs: list[Block]) -> list[Block]:
        pdus, waiting = [], [*pdvs]
        while waiting:
            taken = self._rng.choice((1, 1, 2, len(waiting)))
            pdus.append(Block(_PDU, [P_DATA, 0], [*waiting[:taken]]))
            del waiting[:taken]
        return pdus


def datasets_of(sent: bytes) -> set[bytes]:
    """Return every data set that a receiver may take out of these bytes: what a peer did not send is not among them.

    A data set begins anew behind the last fragment of one, and may begin anew behind the last one of a command.
    """
    found: set[bytes] = set()
    open_sets: list[bytearray] = [bytearray()]
    for control, content in _fragments_of(sent):
        if control & _COMMAND:
            if control & _LAST:
                open_sets.append(bytearray())
            continue
        for one in open_sets:
            one += content
        if control & _LAST:
            found.update(bytes(one) for one in open_sets)
            open_sets = [bytearray()]
    return found


def _fragments_of(sent: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 6 <= len(sent):
        kind, _, length = struct.unpack_from(">BBL", sent, position)
        end = position + 6 + length
        if end > len(sent):
            return
        inner = position + 6
        while kind == P_DATA and inner + 6 <= end:
            size, _, control = struct.unpack_from(">LBB", sent, inner)
            yield control, sent[inner + 6 : min(inner + 4 + size, end)]
            inner += 4 + max(size, 2)
        position = end


def _item(kind: int, *parts: "Block | bytes") -> Block:
    return Block(_ITEM, [kind, 0], [*parts])


def _even(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


@cache
def _template(sop_class: str, syntax: str) -> bytes:
    """Return a data set in this syntax, a deflated one before it is."""
    fragments = (b"\xff\xd8 no picture \xff\xd9",) if syntax == JPEG_BASELINE else ()
    plain = EXPLICIT_LITTLE if syntax == DEFLATED else syntax
    return encoded(loop(_PLACEHOLDER, sop_class, f"{_PLACEHOLDER}.1"), plain, fragments)


def _dataset(instance: str, sop_class: str, syntax: str, seed: int) -> bytes:
    study = f"1.2.826.0.1.7.{10_000_000_000 + seed // 50}.100.1"
    assert len(instance) == len(_PLACEHOLDER)
    content = _template(sop_class, syntax)
    content = content.replace(f"{_PLACEHOLDER}.1".encode(), study.encode()).replace(
        _PLACEHOLDER.encode(), instance.encode()
    )
    if syntax != DEFLATED:
        return content
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = deflater.compress(content) + deflater.flush()
    return deflated + b"\0" * (len(deflated) % 2)


def _nodes(pdus: list[Block]) -> list[Block]:
    return [node for pdu in pdus for node in pdu.walk()]


def _lie_about_length(rng: random.Random, pdus: list[Block]) -> None:
    node = rng.choice(_nodes(pdus))
    true = len(node.encode()) - struct.calcsize(node.layout)
    node.claim = rng.choice(
        (0, 1, true - 1, true + 1, true - 2, true + 2, true // 2, 2 * true, 0xFFFF, 1 << 30, 0x7FFFFFFF, 0x80000000,
         0xFFFFFFFE, 0xFFFFFFFF, rng.getrandbits(32))
    )  # fmt: skip


def _change_head(rng: random.Random, pdus: list[Block]) -> None:
    node = rng.choice(_nodes(pdus))
    place = rng.randrange(len(node.head))
    known = {
        _PDU: (ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT, 0, 8, 255),
        _ITEM: (0, 0x10, 0x20, 0x21, 0x30, 0x40, *range(0x50, 0x5A), 0xFF),
        _PDV: (0, 1, 2, 3, 4, 5, 7, 9, 127, 255),
        _ELEMENT: (0, 2, 3, 0x0100, 0x0110, 0x0120, 0x0600, 0x0700, 0x0800, 0x0900, 0x1000, 0x1001, 0x1008, 0xFFFF),
    }
    node.head[place] = rng.choice(known[node.layout])


def _change_parts(rng: random.Random, pdus: list[Block]) -> None:
    """Leave out, double, swap, or move from one node into another."""
    node = rng.choice([one for one in _nodes(pdus) if one.parts] or pdus)
    _change_list(rng, node.parts, rng.choice(_nodes(pdus)).parts)


def _change_pdus(rng: random.Random, pdus: list[Block]) -> None:
    if rng.random() < 0.5:
        _change_list(rng, pdus, pdus)
        return
    kind = rng.choice((ASSOCIATE_AC, ASSOCIATE_RJ, RELEASE_RQ, RELEASE_RP, ABORT, ASSOCIATE_RQ, 0, 200))
    content = {ASSOCIATE_RQ: pdus[0].encode()[6:] if pdus else b"", ASSOCIATE_AC: bytes(68)}.get(kind, bytes(4))
    pdus.insert(rng.randint(0, len(pdus)), Block(_PDU, [kind, 0], [content]))


def _change_list(rng: random.Random, parts: list, target: list) -> None:  # type: ignore[type-arg]  # of any of two
    if not parts:
        return
    place, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    match rng.randrange(4):
        case 0:
            del parts[place]
        case 1:
            parts[place:place] = [parts[place]] * rng.choice((1, 1, 2, 200))
        case 2:
            parts[place], parts[other] = parts[other], parts[place]
        case _:
            moved = parts.pop(place)
            is_loop = isinstance(moved, Block) and any(node.parts is target for node in moved.walk())
            (parts if is_loop else target).insert(rng.randint(0, len(target)) if not is_loop else place, moved)


def _change_content(rng: random.Random, pdus: list[Block]) -> None:
    """Make a value empty, odd, long, or noise."""
    node = rng.choice([one for one in _nodes(pdus) if any(isinstance(part, bytes) for part in one.parts)] or pdus)
    places = [place for place, part in enumerate(node.parts) if isinstance(part, bytes)]
    if not places:
        return
    place = rng.choice(places)
    value = node.parts[place]
    assert isinstance(value, bytes)
    node.parts[place] = rng.choice(
        (b"", value[:-1], value + b"\0", value[: len(value) // 2], rng.randbytes(rng.choice((1, 2, 7, 64, 5000))),
         b"\\".join([value] * 3), value * rng.choice((2, 30)), b"\xff" * len(value), bytes(len(value)))
    )  # fmt: skip


def _many(rng: random.Random, pdus: list[Block]) -> None:
    """Say one thing a great many times."""
    index = rng.randrange(len(pdus)) if pdus else 0
    pdus[index:index] = pdus[index : index + 1] * rng.choice((70, 300))


_TREE_DAMAGES: tuple[Callable[[random.Random, list[Block]], None], ...] = (
    *(_lie_about_length,) * 8,
    *(_change_head,) * 8,
    *(_change_parts,) * 6,
    *(_change_pdus,) * 4,
    *(_change_content,) * 6,
    _many,
)


def _damaged_bytes(rng: random.Random, steps: list[bytes]) -> list[bytes]:
    place = rng.randrange(len(steps)) if steps else 0
    if not steps or not steps[place]:
        return steps
    damaged = bytearray(steps[place])
    match rng.randrange(5):
        case 0:
            for _ in range(rng.choice((1, 1, 2, 5, 20))):
                damaged[rng.randrange(len(damaged))] = rng.choice((0, 255, rng.getrandbits(8)))
        case 1:
            for _ in range(rng.choice((1, 1, 3))):
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        case 2:  # the peer stops here
            return [*steps[:place], bytes(damaged[: rng.randrange(len(damaged))])]
        case 3:
            start = rng.randrange(len(damaged))
            del damaged[start : start + rng.choice((1, 2, 8, 100))]
        case _:
            start = rng.randrange(len(damaged))
            damaged[start:start] = rng.randbytes(rng.choice((1, 2, 8, 100)))
    return [*steps[:place], bytes(damaged), *steps[place + 1 :]]
