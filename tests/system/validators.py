"""Programs of others that judge a report: dicom3tools, dcmtk and PixelMed.

Findings that are known and harmless are named here, narrowly; everything else is an error.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from pydicom import Dataset, dcmwrite

from tests.binaries import require_binary

PIXELMED = Path("/usr/share/java/pixelmed.jar")

# The stylesheet's TID 300 catches the uncertainty that TID 310 row 5 allows; its CID 100 is extensible and has no
# echocardiography; its TID 1501 is older than the rows of qualitative evaluations.
_PIXELMED_KNOWN = re.compile(
    r"Row (9|10)\] NUM \*: .*\(371884006,SCT,[^)]*\): Incorrect relationship"
    r"|Row 4\] CODE \(121058,DCM,\"Procedure reported\"\).*not found in context group 100"
    r"|^Warning: .*CONTAINER \(125007,DCM,\"Measurement Group\"\)/(CODE|TEXT) \([^/]*\): Content Item not in template"
)
_DSRDUMP_KNOWN = "VR checker does not support this Specific Character Set: ISO_IR 192"
# XPath limits of newer Java stop the stylesheet without a verdict.
_JAVA = ["-Xss16m", *(f"-Djdk.xml.xpath{name}=0" for name in ("ExprOpLimit", "TotalOpLimit", "ExprGrpLimit"))]


def assert_valid_report(report: Dataset | bytes, *, pixelmed: bool = True) -> None:
    """Fail with what the validators say, if one finds an error."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        if isinstance(report, bytes):
            file.write(report)
        else:
            dcmwrite(file, report, enforce_file_format=True)
        file.flush()
        found = [*_dciodvfy(file.name), *_dsrdump(file.name), *_dcmftest(file.name)]
        if pixelmed:
            found += _pixelmed(file.name)
    assert found == []


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=180)


def _dciodvfy(file: str) -> list[str]:
    done = _run(require_binary("dciodvfy"), "-new", file)
    lines = (done.stdout + done.stderr).splitlines()
    assert any(re.fullmatch(r"\w*SR", line) for line in lines), lines  # it knew the IOD
    return [line for line in lines if line.startswith("Error")]


def _dsrdump(file: str) -> list[str]:
    done = _run(require_binary("dsrdump"), "+Pl", file)
    assert done.stdout, done.stderr
    return [line for line in done.stderr.splitlines() if re.match(r"[EF]:", line) and _DSRDUMP_KNOWN not in line]


def _dcmftest(file: str) -> list[str]:
    done = _run(require_binary("dcmftest"), file)
    return [] if done.stdout.startswith("yes:") else [done.stdout]


def _pixelmed(file: str) -> list[str]:
    require_binary("java")
    if not PIXELMED.exists():
        require_binary("DicomSRValidator")
    done = _run("java", *_JAVA, "-cp", str(PIXELMED), "com.pixelmed.validate.DicomSRValidator", file)
    lines = (done.stdout + done.stderr).splitlines()
    assert any("Root Template Validation Complete" in line for line in lines), lines
    return [line for line in lines if re.match(r"Error|.*Exception", line) and not _PIXELMED_KNOWN.search(line)]
