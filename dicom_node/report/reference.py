"""What is normal: the reference values that the summary puts beside ours, and where they are from."""

from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Applicable:
    """Whose ranges may be shown to a patient."""

    sexes: tuple[str, ...]
    """One; both where the header does not say; none for a child."""
    is_age_known: bool
    """False: it may be a child."""


def applicable(header: Dataset) -> Applicable:
    """Return whose ranges may be a patient's.

    Args:
        header: patient and study attributes, repaired (`report.header`).
    """
    years = _age(header.PatientBirthDate, header.StudyDate)
    sexes = (header.PatientSex,) if header.PatientSex in NORMAL else tuple(NORMAL)
    is_child = years is not None and years < ADULT_YEARS
    return Applicable(sexes=() if is_child else sexes, is_age_known=years is not None)


def _age(born: str, seen: str) -> int | None:
    """Return whole years between two dates (YYYYMMDD); None: one of them is not known, or they are the wrong way."""
    if not born or not seen or seen < born:
        return None
    return int(seen[:4]) - int(born[:4]) - (seen[4:] < born[4:])
