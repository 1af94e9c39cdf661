"""Ultrasound loops in every transfer syntax, and what a number makes of them.

Damage is done where each form is weak: to elements and what they claim, to items, fragments, the markers of a frame;
and to any byte. Who the patient is stays as it was: a mix of patients is refused whole, and is no damage.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from model.clip.source import Frames
from model.phantom.dicom import region
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.phantom.screen import Screen
from model.tasks import View
from tests.doubles.datasets import data_part
from tests.doubles.loops import by_gdcm, jpeg, write_encapsulated, write_native

MPEG2, H264 = "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.102"
SCREEN = Screen(rows=160, columns=208)
NUM_FRAMES = 16
PATIENT = "FUZZ"

_SYNTAXES = (
    *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian),
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 92, 93, 100, 102, 103, 106, 111, 201, 203)),
    *("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.98", "1.2.3.4"),
)
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 9, 12, 16, 17, 32, 33, 64, 239, 241, 255, 319, 321, 1000, 4095, 16384, 32768, 65535)
_TEXTS = (
    *("", "0", "-1", "1", "2", "15", "17", "100000", "100001", "2147483647", "99999999999999999999", "1e9", "16\\16"),
    *("abc", "NaN", "inf", "-inf", "1e400", "0.0", "-5", "1e-300", "33.3\\44\\55", "\\\\\\", " 16 ", "0x10"),
)
_CHARSETS = (
    *(b"ISO 2022 IR 87\\ISO 2022 IR 149", b"\\ISO 2022 IR 58", b"GB18030", b"NONSENSE", b"\\\\\\\\", b"ISO_IR 999"),
    *(b"ISO_IR 192\\ISO_IR 100", b"ISO 2022 IR 6\\" * 50, b"\xff\xfe\0\x1b", b""),
)
_PHOTOMETRIC = (b"RGB", b"YBR_FULL", b"YBR_FULL_422", b"YBR_RCT", b"YBR_ICT", b"YBR_PARTIAL_420", b"MONOCHROME1",
                b"MONOCHROME2", b"PALETTE COLOR", b"CMYK", b"", b"\xff\xff", b"RGB\\RGB")  # fmt: skip


@dataclass(kw_only=True)
class Instance:
    """One instance as it is sent."""

    name: str
    """Of the loop that it was, and of what was done to it."""
    syntax: str
    sop_class: str
    sop_instance: str
    content: bytes
    """The data set."""


@dataclass(kw_only=True)
class _Element:
    tag: int
    vr: bytes
    value: bytes
    claim: int | None = None
    """The length that it says; None: the true one."""

    def encode(self) -> bytes:
        length = len(self.value) if self.claim is None else self.claim
        head = struct.pack("<HH2s", self.tag >> 16, self.tag & 0xFFFF, self.vr)
        if self.vr in _LONG:
            return head + struct.pack("<HL", 0, length & 0xFFFFFFFF) + self.value
        return head + struct.pack("<H", length & 0xFFFF) + self.value


@dataclass(kw_only=True)
class _Work:
    """A data set in Explicit VR Little Endian while it is damaged."""

    syntax: str
    elements: list[_Element] = field(default_factory=list)

    def of(self, tag: int) -> _Element | None:
        return next((one for one in self.elements if one.tag == tag), None)

    def put(self, tag: int, vr: bytes, value: bytes, claim: int | None = None) -> None:
        value += (b"\0" if vr in (b"UI", b"OB", b"UN") else b" ") * (len(value) % 2)
        self.elements = [one for one in self.elements if one.tag != tag]
        self.elements.append(_Element(tag=tag, vr=vr, value=value, claim=claim))
        self.elements.sort(key=lambda one: one.tag)

    def encode(self) -> bytes:
        return b"".join(one.encode() for one in self.elements)


def sources(folder: Path, real: Path | None) -> dict[str, Path]:
    """Return files to begin with, by name: a phantom in every form, and real loops where there are some."""
    frames = render(
        Heart(edv_ml=120.0, esv_ml=50.0), View.A4C, num_frames=NUM_FRAMES, frame_time_ms=66.0,
        rng=np.random.default_rng(0), screen=SCREEN,
    )  # fmt: skip
    shape, rest = (NUM_FRAMES, SCREEN.rows, SCREEN.columns), _rest()
    ybr = {"PhotometricInterpretation": "YBR_FULL_422", **rest}
    found = {
        "explicit": write_native(folder / "explicit.dcm", frames, **rest),
        "grey": write_native(folder / "grey.dcm", np.ascontiguousarray(frames[..., 0]), **rest),
        "deep": write_native(folder / "deep.dcm", frames[..., 0].astype(np.uint16) * 200, **rest),
        "implicit": write_native(folder / "implicit.dcm", frames, ImplicitVRLittleEndian, **rest),
        "big": write_native(folder / "big.dcm", frames, ExplicitVRBigEndian, **rest),
        "deflated": write_native(folder / "deflated.dcm", frames, DeflatedExplicitVRLittleEndian, **rest),
        "jpeg": write_encapsulated(folder / "jpeg.dcm", [jpeg(one, quality=80) for one in frames], shape,
                                   JPEGBaseline8Bit, num_fragments=2, **ybr),
        "jpeg_lossless": by_gdcm(write_native(folder / "plain.dcm", frames, **rest), folder / "lossless.dcm",
                                 JPEGLosslessSV1),
        "mpeg2": write_encapsulated(folder / "mpeg2.dcm", [_video(frames, "mpeg2video", "mpeg")], shape, MPEG2,
                                    has_offsets=False, **{**ybr, "PhotometricInterpretation": "YBR_PARTIAL_420"}),
        "mpeg4": write_encapsulated(folder / "mpeg4.dcm", [_video(frames, "mpeg4", "mp4")], shape, H264,
                                    has_offsets=False, **{**ybr, "PhotometricInterpretation": "YBR_PARTIAL_420"}),
    }  # fmt: skip
    (folder / "plain.dcm").unlink()
    for name, syntax in (("rle", RLELossless), ("jpeg_ls", JPEGLSLossless), ("j2k", JPEG2000Lossless)):
        plain = dcmread(found["explicit"])
        plain.compress(syntax, generate_instance_uid=False)
        compressed = [*generate_frames(plain.PixelData, number_of_frames=NUM_FRAMES)]
        photometric = {"PhotometricInterpretation": plain.PhotometricInterpretation}
        found[name] = write_encapsulated(folder / f"{name}.dcm", compressed, shape, syntax, **{**rest, **photometric})
    for path in sorted((real / "us").glob("*.dcm")) if real is not None else ():
        if path.stat().st_size < 500_000:
            found[path.stem] = path
    return found


def _rest() -> dict[str, object]:
    """Return what the header of a loop says beside its pixels."""
    return {
        "SequenceOfUltrasoundRegions": [region(SCREEN, spatial_format=1, data_type=1)],
        "FrameTime": "66.0",
        "HeartRate": 60,
        "ImageType": ["ORIGINAL", "PRIMARY", "TEE", "0001"],
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "StudyDate": "20261124",
        "SpecificCharacterSet": "ISO_IR 100",
    }


def _video(frames: Frames, codec: str, container: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as video:
        stream = video.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode())
    return buffer.getvalue()


def instance(path: Path, study: str, number: int, seed: int | None) -> Instance:
    """Return the loop of a file as instance `number` of a study, damaged by the seed; None: as it is."""
    loop = dcmread(path)
    loop.StudyInstanceUID, loop.SeriesInstanceUID = study, f"{study}.1"
    loop.SOPInstanceUID = loop.file_meta.MediaStorageSOPInstanceUID = f"{study}.1.{number}"
    loop.PatientID, loop.PatientName, loop.PatientBirthDate = PATIENT, PATIENT, ""
    syntax, sop_class = str(loop.file_meta.TransferSyntaxUID), str(loop.SOPClassUID)
    done = Instance(
        name=path.stem, syntax=syntax, sop_class=sop_class, sop_instance=loop.SOPInstanceUID, content=_encoded(loop)
    )
    if seed is not None:
        _damage(done, random.Random(seed))
    return done


def _encoded(loop: Dataset) -> bytes:
    buffer = io.BytesIO()
    loop.save_as(buffer, enforce_file_format=True)
    return data_part(buffer.getvalue())


def _damage(done: Instance, rng: random.Random) -> None:
    has_elements = done.syntax not in (ImplicitVRLittleEndian, ExplicitVRBigEndian)
    if has_elements and rng.random() < 0.85:
        is_deflated = done.syntax == DeflatedExplicitVRLittleEndian
        work = _Work(syntax=done.syntax)
        work.elements = _elements(zlib.decompress(done.content, wbits=-zlib.MAX_WBITS) if is_deflated else done.content)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            damage = rng.choice(_DAMAGES)
            damage(rng, work)
            done.name += f" {damage.__name__.strip('_')}"
        done.content, done.syntax = work.encode(), work.syntax
        if is_deflated and work.syntax == DeflatedExplicitVRLittleEndian:
            deflater = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
            done.content = deflater.compress(done.content) + deflater.flush()
    if not has_elements or rng.random() < 0.15:
        done.content = _any_byte(rng, done.content)
        done.name += " any_byte"
    done.content += b"\0" * (len(done.content) % 2)


def _elements(content: bytes) -> list[_Element]:
    """Return the elements of a whole data set in Explicit VR Little Endian; sequences in it have lengths."""
    found = []
    position = 0
    while position < len(content):
        group, number, vr = struct.unpack_from("<HH2s", content, position)
        start = position + (12 if vr in _LONG else 8)
        length = int.from_bytes(
            content[position + 8 : start] if vr in _LONG else content[position + 6 : start], "little"
        )
        claim = None
        if length == 0xFFFFFFFF:
            length, claim = _undefined(content, start), 0xFFFFFFFF
        value = content[start : start + length]
        found.append(_Element(tag=group << 16 | number, vr=vr, value=value, claim=claim))
        position = start + length
    return found


def _undefined(content: bytes, start: int) -> int:
    """Return the length of fragments with their delimiter, or of a sequence of items without length to its last one."""
    position = start
    while content[position : position + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(content[position + 4 : position + 8], "little")
        if length == 0xFFFFFFFF:
            return content.index(b"\xfe\xff\xdd\xe0\0\0\0\0", start) + 8 - start
        position += 8 + length
    return position + 8 - start


def _claim(rng: random.Random, work: _Work) -> None:
    """Say something else of the pixels than they are."""
    match rng.randrange(4):
        case 0:
            work.put(0x00280008, b"IS", rng.choice(_TEXTS).encode())
        case 1:
            work.put(0x00280004, b"CS", rng.choice(_PHOTOMETRIC))
        case _:
            tags = (0x00280002, 0x00280006, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103)
            for _ in range(rng.choice((1, 1, 2))):
                work.put(rng.choice(tags), b"US", struct.pack("<H", rng.choice(_NUMBERS)))


def _times(rng: random.Random, work: _Work) -> None:
    tag, vr = rng.choice(((0x00181063, b"DS"), (0x00181065, b"DS"), (0x00180040, b"IS"), (0x00082144, b"IS"),
                          (0x00181088, b"IS"), (0x00200011, b"IS"), (0x00200013, b"IS"), (0x00281050, b"DS"),
                          (0x00281051, b"DS"), (0x00080008, b"CS"), (0x00080060, b"CS")))  # fmt: skip
    work.put(tag, vr, rng.choice(_TEXTS).encode())


def _regions(rng: random.Random, work: _Work) -> None:
    items = b"".join(_region(rng) for _ in range(rng.choice((0, 1, 1, 2, 5, 300))))
    work.put(0x00186011, b"SQ", items)


def _region(rng: random.Random) -> bytes:
    body = b""
    for tag in (0x6012, 0x6014, 0x6016):
        body += _Element(tag=0x00180000 | tag, vr=b"US", value=struct.pack("<H", rng.choice(_NUMBERS))).encode()
    for tag in (0x6018, 0x601A, 0x601C, 0x601E):
        value = rng.choice((0, 1, 239, 319, 320, 0x7FFFFFFF, 0xFFFFFFFF, rng.getrandbits(32)))
        body += _Element(tag=0x00180000 | tag, vr=b"UL", value=struct.pack("<L", value)).encode()
    for tag in (0x602C, 0x602E):
        value = rng.choice((0.0, 0.01, -0.03, 1e-300, 1e300, float("nan"), float("inf"), 0.04))
        body += _Element(tag=0x00180000 | tag, vr=b"FD", value=struct.pack("<d", value)).encode()
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(body)) + body


def _syntax(rng: random.Random, work: _Work) -> None:
    work.syntax = str(rng.choice(_SYNTAXES))


def _element(rng: random.Random, work: _Work) -> None:
    """Damage one element as such: its value, its kind, its length, its place."""
    places = [place for place, one in enumerate(work.elements) if one.tag not in _IDENTITY]
    place = rng.choice(places)
    one = work.elements[place]
    match rng.randrange(7):
        case 0:
            one.vr = rng.choice((b"US", b"SL", b"FD", b"DS", b"IS", b"UN", b"SQ", b"AT", b"ZZ", b"OB", b"PN", b"TM"))
        case 1:
            one.claim = rng.choice((0, 1, len(one.value) + 2, len(one.value) - 2, 0x7FFFFFFE, 0x80000000, 0xFFFFFFFF))
        case 2:
            one.value = rng.choice((b"", one.value[:-1], one.value * 3, rng.randbytes(rng.choice((1, 2, 3, 8, 100)))))
        case 3:
            del work.elements[place]
        case 4:
            work.elements.insert(rng.randrange(len(work.elements)), one)
        case 5:
            work.elements.insert(0, work.elements.pop(place))
        case _:
            one.value = bytes(rng.getrandbits(8) for _ in range(min(len(one.value), 2000))) + one.value[2000:]


def _texts(rng: random.Random, work: _Work) -> None:
    """Write in another character set than is said."""
    work.put(0x00080005, b"CS", rng.choice(_CHARSETS))
    for tag, vr in ((0x00081030, b"LO"), (0x00080080, b"LO"), (0x00080090, b"PN"), (0x00080050, b"SH")):
        if rng.random() < 0.5:
            work.put(tag, vr, rng.choice((rng.randbytes(30), b"\x1b$)C" + rng.randbytes(9), b"=" * 9, b"^" * 40)))


def _sequences(rng: random.Random, work: _Work) -> None:
    """Nest, or repeat; private, or in the place of something else."""
    tag = rng.choice((0x00186011, 0x00540220, 0x0040A730, 0x00111010, 0x00081140, 0x00280010, 0x00281101))
    item, end = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0"
    last = b"\xfe\xff\xdd\xe0\0\0\0\0"
    if rng.random() < 0.5:
        depth = rng.choice((3, 20, 60, 63))
        head = struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + item + b"\xff" * 4
        value = item + b"\xff" * 4 + head * depth + (end + last) * depth + end + last
        work.put(tag, b"SQ", value, 0xFFFFFFFF)
    else:
        num_items = rng.choice((1, 50, 3000, 100_000 if rng.random() < 0.05 else 7))
        body = rng.choice((b"", _region(rng)))
        value = (item + struct.pack("<L", len(body)) + body) * num_items
        is_open = rng.random() < 0.5
        work.put(tag, b"SQ", value + last * is_open, 0xFFFFFFFF if is_open else None)


def _palette(rng: random.Random, work: _Work) -> None:
    """Claim a palette that is none."""
    work.put(0x00280004, b"CS", b"PALETTE COLOR")
    for colour in (1, 2, 3):
        entries = struct.pack("<HHH", *(rng.choice(_NUMBERS) for _ in range(3)))
        work.put(0x00281100 | colour, b"US", rng.choice((entries, entries[:4], b"")))
        work.put(0x00281200 | colour, b"OW", rng.randbytes(2 * rng.choice((0, 1, 128, 256, 40_000))))


def _fragments(rng: random.Random, work: _Work) -> None:
    """Damage encapsulated pixel data: fragments, the table of offsets, the frames in them."""
    pixels = work.of(0x7FE00010)
    if pixels is None or pixels.claim != 0xFFFFFFFF:
        return _pixels(rng, work)
    items = _items(pixels.value)
    match rng.randrange(8):
        case 0:
            del items[rng.randrange(len(items))]
        case 1:
            place = rng.randrange(len(items))
            items[place:place] = [items[place]] * rng.choice((1, 3, 500))
        case 2:
            rng.shuffle(items)
        case 3:
            items[0] = rng.choice((b"", rng.randbytes(64), struct.pack("<L", 0xFFFFFFFF) * NUM_FRAMES, b"\0" * 64))
        case 4:
            table = rng.choice((rng.randbytes(128), struct.pack("<Q", 1 << 62) * NUM_FRAMES, b"\0" * 128))
            work.put(0x7FE00001, b"OV", table)
            work.put(0x7FE00002, b"OV", rng.choice((table, struct.pack("<Q", 1 << 40) * NUM_FRAMES, b"\0" * 128)))
        case _:
            for _ in range(rng.choice((1, 2, 8))):
                place = rng.randrange(1, len(items)) if len(items) > 1 else 0
                items[place] = _frame(rng, items[place])
    pixels = work.of(0x7FE00010)
    assert pixels is not None
    body = [
        b"\xfe\xff\x00\xe0" + struct.pack("<L", len(one) + len(one) % 2) + one + b"\0" * (len(one) % 2) for one in items
    ]
    pixels.value = b"".join(body) + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return None


def _items(value: bytes) -> list[bytes]:
    items = []
    position = 0
    while value[position : position + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(value[position + 4 : position + 8], "little")
        items.append(value[position + 8 : position + 8 + length])
        position += 8 + length
    return items or [b""]


def _frame(rng: random.Random, frame: bytes) -> bytes:
    """Damage a compressed frame, at a marker if it has one."""
    damaged = bytearray(frame or b"\0\0")
    markers = [place for place in range(len(damaged) - 12) if damaged[place] == 0xFF and damaged[place + 1] >= 0x4F]
    match rng.randrange(6):
        case 0 if markers:  # sizes, tables, components: the bytes behind one
            place = rng.choice(markers[:12])
            for _ in range(rng.choice((1, 2, 4))):
                damaged[place + rng.randrange(2, 12)] = rng.choice((0, 1, 2, 3, 4, 16, 127, 128, 254, 255))
        case 1 if markers:  # another one
            damaged[rng.choice(markers[:12]) + 1] = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xD8, 0xD9, 0xDA,
                                                               0xDB, 0xDD, 0xF7, 0x51, 0x52, 0x5C, 0x90))  # fmt: skip
        case 2:
            return bytes(damaged[: rng.randrange(len(damaged))])
        case 3:  # the header of RLE, the first box of a video
            for _ in range(rng.choice((1, 2, 6))):
                damaged[rng.randrange(min(len(damaged), 64))] = rng.getrandbits(8)
        case 4 if markers:  # 65535 x 65535
            for place in markers:
                if damaged[place + 1] in (0xC0, 0xC3, 0xF7):
                    damaged[place + 5 : place + 9] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x00\xf0\xff\xff"))
        case _:
            for _ in range(rng.choice((1, 3, 30))):
                damaged[rng.randrange(len(damaged))] = rng.getrandbits(8)
    return bytes(damaged)


def _pixels(rng: random.Random, work: _Work) -> None:
    """Damage uncompressed pixel data, or put it in the place of compressed and the other way round."""
    pixels = work.of(0x7FE00010)
    if pixels is None:
        return
    match rng.randrange(4):
        case 0:
            pixels.value = pixels.value[: rng.randrange(len(pixels.value) or 1)]
        case 1:
            pixels.value = (
                encapsulate([pixels.value[:5000] or bytes(2)] * 3, has_bot=False) + b"\xfe\xff\xdd\xe0\0\0\0\0"
            )
            pixels.claim = 0xFFFFFFFF
        case 2:
            pixels.claim = None
        case _:
            pixels.value = rng.randbytes(rng.choice((0, 2, 1000)))
    pixels.value += b"\0" * (len(pixels.value) % 2)


def _any_byte(rng: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    most = len(damaged) if rng.random() < 0.5 else min(len(damaged), 1500)
    match rng.randrange(4):
        case 0:
            return bytes(damaged[: rng.randrange(2, most)])
        case 1:
            start = rng.randrange(most)
            del damaged[start : start + rng.choice((1, 2, 100))]
        case _:
            for _ in range(rng.choice((1, 1, 2, 5, 50))):
                damaged[rng.randrange(most)] = rng.choice((0, 255, rng.getrandbits(8)))
    return bytes(damaged)


_IDENTITY = frozenset({0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00100010, 0x00100020, 0x00100030})
_DAMAGES: Sequence[Callable[[random.Random, _Work], None]] = (
    *(_fragments,) * 9,
    *(_claim,) * 5,
    *(_element,) * 4,
    *(_times, _regions, _syntax, _texts, _sequences) * 2,
    _palette,
)
