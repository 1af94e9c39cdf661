"""What is normal: the reference values that the summary puts beside ours, and where they are from."""

from dataclasses import dataclass
from datetime import date
from types import MappingProxyType

from pydicom import Dataset

from dicom_node.report.findings import Measurement

SOURCE = "Lang et al., J Am Soc Echocardiogr 2015;28:1-39 (ASE/EACVI), tables 2 and 4: adults, biplane"
"""Recommendations for cardiac chamber quantification by echocardiography in adults."""

ADULT_YEARS = 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """From which to which value a healthy adult's lies, ends included (mean and two standard deviations)."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Return whether a value lies inside."""
        return self.low <= value <= self.high


NORMAL = MappingProxyType(
    {
        "M": MappingProxyType(
            {
                Measurement.LVEF: Range(low=52, high=72),
                Measurement.LVEDV: Range(low=62, high=150),
                Measurement.LVESV: Range(low=21, high=61),
            }
        ),
        "F": MappingProxyType(
            {
                Measurement.LVEF: Range(low=54, high=74),
                Measurement.LVEDV: Range(low=46, high=106),
                Measurement.LVESV: Range(low=14, high=42),
            }
        ),
    }
)
"""Patient's Sex -> measurement -> range, in % and mL."""


def sexes(header: Dataset) -> tuple[str, ...]:
    """Return the sexes whose ranges may be a patient's: one, both where the header does not say, none for a child.

    Args:
        header: patient and study attributes, repaired (`report.header`).
    """
    years = _age(header.PatientBirthDate, header.StudyDate)
    if years is not None and years < ADULT_YEARS:
        return ()
    return (header.PatientSex,) if header.PatientSex in NORMAL else tuple(NORMAL)


def _age(born: str, seen: str) -> int | None:
    """Return whole years between two dates (YYYYMMDD); None: one of them is not known, or they are the wrong way."""
    if not born or not seen or seen < born:
        return None
    birth, study = (date(int(day[:4]), int(day[4:6]), int(day[6:])) for day in (born, seen))
    return study.year - birth.year - ((study.month, study.day) < (birth.month, birth.day))
