"""DICOMweb user agent: what a study consists of (QIDO-RS), and its instances as they are stored (WADO-RS).

PS3.18 sections 10.4 and 10.6. What a server says in its own words is not repeated: it may name the patient.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx

from dicom_node.association_server import Limits
from dicom_node.errors import InvalidUID, RetrieveError
from dicom_node.identity import UID, parse_uid
from dicom_node.multipart import DamagedMultipart, boundary_of, parts
from dicom_node.query_retrieve import MOST_INSTANCES
from dicom_node.settings import Peer

_CONNECT_SECONDS = 10.0
_PAGE = 1000
_MAX_PAGE_BYTES = 64 << 20
_JSON = "application/dicom+json"
# Any transfer syntax: the server need not decode what it holds (PS3.18 section 8.7.3.5.2).
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_STUDY, _SOP_CLASS, _SOP_INSTANCE = "0020000D", "00080016", "00080018"

_PREFIX_END = 132  # preamble and prefix (PS3.10 section 7.1)
_LONG = (b"OB", b"OW", b"UN", b"SQ", b"UT")
_CLASS_TAG, _INSTANCE_TAG, _SYNTAX_TAG = 0x0002, 0x0003, 0x0010


@dataclass(frozen=True, kw_only=True, slots=True)
class Part10:
    """A DICOM file, taken apart."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str
    dataset: bytes


class DicomWeb:
    """A peer's DICOMweb service."""

    def __init__(self, peer: Peer, patience: timedelta, limits: Limits) -> None:
        """Use the service at peer.dicomweb_url; `patience` is how long nothing may come."""
        self._longest = limits.max_object
        self._peer = peer
        self._url = peer.dicomweb_url.rstrip("/")
        self._timeout = httpx.Timeout(patience.total_seconds(), connect=_CONNECT_SECONDS)

    def find_study(self, study_uid: UID) -> Mapping[UID, UID | None]:
        """Return SOP Instance UID -> SOP Class UID of a study.

        Raises:
            RetrieveError: the service does not know the study, or does not say what it consists of.
        """
        found: dict[UID, UID | None] = {}
        with self._client() as client:
            while page := self._page(client, study_uid, len(found)):
                known = len(found)
                found |= page
                if len(found) == known:  # it does not know offset, and gave the first page again
                    break
                if len(found) > MOST_INSTANCES:
                    raise self._error(f"names more than {MOST_INSTANCES} instances for one study")
        if not found:
            raise self._error(f"knows no study {study_uid}")
        return found

    def instances(self, study_uid: UID) -> Iterator[bytearray]:
        """Give the files of a study, one at a time.

        Raises:
            RetrieveError: it does not give them, or not all.
        """
        headers = {"Accept": _AS_STORED, "Accept-Encoding": "identity"}
        url = f"{self._url}/studies/{study_uid}"
        with self._client() as client, self._answer(client, url, headers, {}) as answer:
            self._judge(answer, "WADO-RS")
            boundary = boundary_of(answer.headers.get("Content-Type", ""))
            if boundary is None:
                raise self._error("WADO-RS: the answer is not multipart/related; is dicomweb_url the base URL?")
            try:
                yield from parts(answer.iter_raw(), boundary, self._longest)
            except DamagedMultipart as error:
                raise self._error(f"WADO-RS: {error}") from error

    def _page(self, client: httpx.Client, study_uid: UID, offset: int) -> dict[UID, UID | None]:
        query = {"limit": str(_PAGE), "offset": str(offset)}
        url = f"{self._url}/studies/{study_uid}/instances"
        with self._answer(client, url, {"Accept": _JSON}, query) as answer:
            if answer.status_code in (204, 404, 410):
                return {}
            self._judge(answer, "QIDO-RS")
            content = bytearray()
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > _MAX_PAGE_BYTES:
                    raise self._error(f"QIDO-RS: an answer of more than {_MAX_PAGE_BYTES} bytes")
        try:
            rows = [_row(one) for one in json.loads(content)]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, InvalidUID) as error:
            raise self._error(
                "QIDO-RS: the answer is no list of instances in DICOM JSON; is dicomweb_url the base URL?"
            ) from error
        # A server that does not look at the study would name all that it has.
        return {instance: sop_class for study, instance, sop_class in rows if study in (None, study_uid)}

    def _client(self) -> httpx.Client:
        return httpx.Client(timeout=self._timeout)

    @contextmanager
    def _answer(
        self, client: httpx.Client, url: str, headers: Mapping[str, str], query: Mapping[str, str]
    ) -> Iterator[httpx.Response]:
        try:
            with client.stream("GET", url, headers=headers, params=query) as answer:
                yield answer
        except httpx.TimeoutException as error:
            waited = self._timeout.connect if isinstance(error, httpx.ConnectTimeout) else self._timeout.read
            raise self._error(f"DICOMweb: silent for {waited:.0f} s, given up") from error
        except httpx.ConnectError as error:
            raise self._error("DICOMweb: no connection; check peers.dicomweb_url, and its certificate") from error
        except httpx.RequestError as error:
            raise self._error(f"DICOMweb: the connection was lost in the middle ({type(error).__name__})") from error
        except httpx.InvalidURL as error:
            raise self._error("peers.dicomweb_url is no URL") from error

    def _judge(self, answer: httpx.Response, service: str) -> None:
        status = answer.status_code
        if status == 200:
            return
        if status in (401, 403):
            words = "it does not let us in; is a user in peers.dicomweb_url?"
        elif status == 406:
            words = "it does not give the instances as they are stored; try --by get"
        elif status in (404, 410):
            words = "it does not have that; is peers.dicomweb_url the base URL?"
        elif 300 <= status < 400:
            words = "it is elsewhere; correct peers.dicomweb_url"
        else:
            words = "it failed" if status >= 500 else "unexpected"
        raise self._error(f"{service}: HTTP status {status}, {words}")

    def _error(self, text: str) -> RetrieveError:
        return RetrieveError(f"{self._peer.name}: {text}")


def take_apart(file: bytearray) -> Part10 | None:
    """Return a DICOM file's data set and what group 2 says of it; None: it is none."""
    if file[128:_PREFIX_END] != b"DICM":
        return None
    values: dict[int, str] = {}
    position = _PREFIX_END
    # Group 2 is always Explicit VR Little Endian; its length is not trusted, for some writers count wrong.
    while file[position : position + 2] == b"\x02\x00":
        element = int.from_bytes(file[position + 2 : position + 4], "little")
        is_long = file[position + 4 : position + 6] in _LONG
        start = position + (12 if is_long else 8)
        length = int.from_bytes(file[start - (4 if is_long else 2) : start], "little")
        position = start + length
        if element in (_CLASS_TAG, _INSTANCE_TAG, _SYNTAX_TAG):
            values[element] = file[start:position].decode("ascii", "replace").strip(" \0")
    try:
        syntax = parse_uid(values[_SYNTAX_TAG])
    except (KeyError, InvalidUID):
        return None
    return Part10(
        sop_class=values.get(_CLASS_TAG, ""),
        sop_instance=values.get(_INSTANCE_TAG, ""),
        transfer_syntax=syntax,
        dataset=bytes(memoryview(file)[position:]),
    )


def _row(row: Mapping[str, Any]) -> tuple[UID | None, UID, UID | None]:
    """Return Study Instance, SOP Instance and SOP Class UID of one match (PS3.18 F.2)."""
    return _value(row, _STUDY), parse_uid(row[_SOP_INSTANCE]["Value"][0]), _value(row, _SOP_CLASS)


def _value(row: Mapping[str, Any], tag: str) -> UID | None:
    values = row.get(tag, {}).get("Value")
    return parse_uid(values[0]) if values else None
