"""Identifiers, each made by one parser: once parsed they are trusted."""

import re
import uuid
from typing import NewType

from dicom_node.errors import InvalidAETitle, InvalidUID

UID = NewType("UID", str)
"""A DICOM UID that is safe as one path component."""

AETitle = NewType("AETitle", str)
"""An application entity title without padding."""

_UID_MAX = 64  # PS3.5 section 9.1
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+", re.ASCII)
# Real carts write components with leading zeros; they are unique and safe as names, so they are taken as they are.
_LENIENT_UID = re.compile(r"[0-9]+(\.[0-9]+)+", re.ASCII)
_AE_MAX = 16  # PS3.5 table 6.2-1
_AE = re.compile(r"[\x20-\x5b\x5d-\x7e]+", re.ASCII)  # no backslash, no control characters

_NAMESPACE = uuid.UUID("6f1d7c62-5d0d-5f1c-9b59-0d2f9a6a7d10")


def parse_uid(value: object) -> UID:
    """Return `value` as a UID that is safe to use as a file name.

    Raises:
        InvalidUID: it is none.
    """
    text = str(value).rstrip("\0 ")
    if len(text) > _UID_MAX or not _LENIENT_UID.fullmatch(text):
        raise InvalidUID(f"not a DICOM UID: {text[:80]!r}")
    return UID(text)


def is_standard_uid(uid: UID) -> bool:
    """Return whether the UID follows PS3.5 section 9.1 to the letter (no leading zeros)."""
    return _UID.fullmatch(uid) is not None


def parse_ae_title(value: object) -> AETitle:
    """Return `value` as an AE title without leading and trailing spaces.

    Raises:
        InvalidAETitle: it is none.
    """
    text = str(value).strip(" \0")
    if not text or len(text) > _AE_MAX or not _AE.fullmatch(text):
        raise InvalidAETitle(f"not an AE title (1 to 16 characters, no backslash): {text[:40]!r}")
    return AETitle(text)


def result_uid(study_uid: UID, revision: int, ensemble_digest: str, kind: str) -> UID:
    """Return the SOP Instance UID of a result: a function of its arguments, so that sending twice is storing once.

    The form is 2.25 with a version 5 UUID (PS3.5 section B.2).
    """
    name = "/".join((study_uid, str(revision), ensemble_digest, kind))
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, name).int}")
