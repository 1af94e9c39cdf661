"""Programs of others that judge a report: dicom3tools, dcmtk, highdicom and PixelMed.

Findings that are known and harmless are named here, narrowly; everything else is an error.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from highdicom.sr import srread
from pydicom import Dataset, dcmwrite

from tests.binaries import require_binary

PIXELMED = Path("/usr/share/java/pixelmed.jar")

# What PixelMed finds wrongly -> what makes it find that, once each: its stylesheet's TID 300 catches in two rows the
# uncertainty that TID 310 row 5 allows; its CID 100 is extensible and has no echocardiography.
_PIXELMED_KNOWN = {
    r"Row 9\] NUM \*: .*\(371884006,SCT,[^)]*\): Incorrect relationship": b"371884006",
    r"Row 10\] NUM \*: .*\(371884006,SCT,[^)]*\): Incorrect relationship": b"371884006",
    r"Row 4\] CODE \(121058,DCM,\"Procedure reported\"\).*not found in context group 100": b"40701008",
}
_DSRDUMP_KNOWN = "VR checker does not support this Specific Character Set: ISO_IR 192"
# dciodvfy counts bytes where PS3.5 6.2 counts characters, and the groups of a name together.
_TOO_LONG = re.compile(
    r"Error - .*Value invalid for this VR \[(LO|SH|PN)\] = <(.*)>"
    r" - Length invalid for this VR = <\d+> - expected <= (\d+)"
)
# XPath limits of newer Java stop the stylesheet without a verdict; a process of seconds does not earn back what the
# second compiler and the collector's threads cost, half as much again.
_JAVA = [
    *("-Xss16m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"),
    *(f"-Djdk.xml.xpath{name}=0" for name in ("ExprOpLimit", "TotalOpLimit", "ExprGrpLimit")),
]


def assert_valid_report(report: Dataset | bytes, *, pixelmed: bool = True) -> None:
    """Fail with what the validators say, if one finds an error."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        if isinstance(report, bytes):
            file.write(report)
        else:
            dcmwrite(file, report, enforce_file_format=True)
        file.flush()
        found = [*_dciodvfy(file.name), *_dsrdump(file.name), *_dcmftest(file.name), *_highdicom(file.name)]
        if pixelmed:
            found += _pixelmed(file.name)
    assert not found, "\n".join(found)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=180)


def _dciodvfy(file: str) -> list[str]:
    done = _run(require_binary("dciodvfy"), "-new", file)
    lines = (done.stdout + done.stderr).split("\n")
    assert any(re.fullmatch(r"\w*SR", line) for line in lines), lines  # it knew the IOD
    return [line for line in lines if line.startswith("Error") and not _is_short_enough(line)]


def _is_short_enough(line: str) -> bool:
    found = _TOO_LONG.fullmatch(line)
    return found is not None and all(len(group) <= int(found[3]) for group in found[2].split("="))


def _dsrdump(file: str) -> list[str]:
    done = _run(require_binary("dsrdump"), "+Pl", file)
    assert done.stdout, done.stderr
    return [line for line in done.stderr.split("\n") if re.match(r"[EF]:", line) and _DSRDUMP_KNOWN not in line]


def _dcmftest(file: str) -> list[str]:
    done = _run(require_binary("dcmftest"), file)
    return [] if done.stdout.startswith("yes:") else [done.stdout]


def _highdicom(file: str) -> list[str]:
    """Return the references of the content to what is no evidence; raise if highdicom cannot read it."""
    report = srread(file)
    groups = report.content.get_image_measurement_groups()  # type: ignore[attr-defined]
    assert len({group.tracking_uid for group in groups}) == len(groups) >= 2
    evidence = {instance for _, _, instance, *_ in report.get_evidence()}
    return [f"highdicom: {uid} is no evidence" for uid in sorted(referenced(report) - evidence)]


def evidence(report: Dataset) -> set[str]:
    """Return the SOP Instance UIDs that a report names as its evidence (PS3.3 C.17.2)."""
    return {
        str(one.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


def referenced(item: Dataset) -> set[str]:
    """Return the SOP Instance UIDs that a tree of content items refers to."""
    own = {str(one.ReferencedSOPInstanceUID) for one in item.get("ReferencedSOPSequence", ())}
    return own.union(*(referenced(child) for child in item.get("ContentSequence", ())))


def _pixelmed(file: str) -> list[str]:
    require_binary("java")
    if not PIXELMED.exists():
        require_binary("DicomSRValidator")
    done = _run("java", *_JAVA, "-cp", str(PIXELMED), "com.pixelmed.validate.DicomSRValidator", file)
    lines = (done.stdout + done.stderr).split("\n")
    assert any("Root Template Validation Complete" in line for line in lines), lines
    errors = [line for line in lines if re.match(r"Error|.*Exception", line)]
    content = Path(file).read_bytes()
    for pattern, cause in _PIXELMED_KNOWN.items():
        known = [line for line in errors if re.search(pattern, line)]
        assert len(known) == content.count(cause), (pattern, known)
        errors = [line for line in errors if line not in known]
    return errors
