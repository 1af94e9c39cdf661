"""What all documents of one report have in common: whose study it is, who wrote them, when, and under which UIDs."""

import io
import re
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version

from pydicom import Dataset, dcmwrite

from dicom_node.identity import UID, result_uid
from dicom_node.report import concepts
from dicom_node.report.findings import Algorithm

MODEL_NAME = "Echo AI node"
UTF_8 = "ISO_IR 192"
_TEXT_VRS = frozenset({"SH", "LO", "ST", "LT", "UC", "UT", "PN"})  # PS3.5 6.1.2.3
_LO_MAX = 64  # PS3.5 table 6.2-1
_NOT_LO = re.compile(r"[\x00-\x1f\x7f\\]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where the documents of one report come from."""

    study_uid: UID
    revision: int
    """1 for the first report of the study."""
    algorithm: Algorithm
    header: Dataset
    """Patient and study attributes, white-listed and repaired (`report.header`)."""
    created_at: datetime
    """Content and creation time, aware: in the time zone of the hospital."""
    character_set: str = UTF_8
    """ISO_IR 192, or ISO_IR 100 for documents that it can write."""

    def uid(self, kind: str) -> UID:
        """Return the UID of a document or group: a function of study, revision, ensemble and kind."""
        return result_uid(self.study_uid, self.revision, self.algorithm.ensemble_digest, kind)

    def series_uid(self, kind: str) -> UID:
        """Return the UID of a series, the same for every revision."""
        return result_uid(self.study_uid, 0, "", kind)

    @property
    def software(self) -> list[str]:
        """Return the versions of this program and of the ensemble that spoke, or was silent."""
        return [version("echo-ai-node"), _line(f"{self.algorithm.name} {self.algorithm.version}")[:_LO_MAX]]

    @property
    def serial(self) -> str:
        """Return the serial number of the device: its networks."""
        return self.algorithm.ensemble_digest[:16]

    @property
    def series_description(self) -> str:
        """Return what a viewer writes over the series: the ensemble's statement whole wherever it fits at all."""
        statement = _line(self.algorithm.statement)
        if not statement:
            return "Echo AI (research, not for clinical use)"
        texts = (f"Echo AI (research): {statement}", f"Echo AI: {statement}", statement)
        return next((one for one in texts if len(one) <= _LO_MAX), f"{statement[: _LO_MAX - 3]}...")

    def stamp(self, document: Dataset) -> None:
        """Write content and creation time into a document: all that differs between two runs.

        They are in the time zone of the study where its headers name one, else in that of `created_at`: the offset
        holds for the study's time too, which is taken over as it is (PS3.3 C.12.1.1.8).
        """
        named = self.header.get("TimezoneOffsetFromUTC")
        moment = self.created_at.astimezone(datetime.strptime(named, "%z").tzinfo) if named else self.created_at
        document.ContentDate = document.InstanceCreationDate = moment.strftime("%Y%m%d")
        document.ContentTime = document.InstanceCreationTime = moment.strftime("%H%M%S.%f")
        document.TimezoneOffsetFromUTC = moment.strftime("%z")[:5]

    def sign(self, document: Dataset) -> None:
        """Write patient, study and equipment into a document that has none (PS3.3 C.7.1.1, C.7.2.1, C.7.5.1)."""
        for element in self.header:
            document.add(element)
        document.StudyInstanceUID = self.study_uid
        document.SeriesDescription = self.series_description
        document.Manufacturer = concepts.ORGANIZATION
        document.ManufacturerModelName = MODEL_NAME
        document.DeviceSerialNumber = self.serial
        document.SoftwareVersions = self.software
        self.stamp(document)

    def written(self, document: Dataset) -> bytes:
        """Return the document as a file, in its character set; in UTF-8 if that has not every letter."""
        texts = (str(element.value) for element in document.iterall() if element.VR in _TEXT_VRS)
        fits = self.character_set == UTF_8 or all(_is_latin_1(text) for text in texts)
        document.SpecificCharacterSet = self.character_set if fits else UTF_8
        buffer = io.BytesIO()
        dcmwrite(buffer, document, enforce_file_format=True)
        return buffer.getvalue()


def _is_latin_1(text: str) -> bool:
    return all(letter <= "\xff" for letter in text)


def _line(text: str) -> str:
    """Return a text of people as one value of a line: a back-slash would part it in two."""
    return _NOT_LO.sub(" ", text).strip()
