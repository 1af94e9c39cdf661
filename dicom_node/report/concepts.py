"""Every code that a report uses, once, with its scheme, value and meaning.

Sources: PS3.16 (DCM, CIDs as noted), SNOMED CT (SCT), LOINC (LN), UCUM; 99ECHOVFM is ours.
"""

from types import MappingProxyType

from highdicom.sr import CodedConcept

from dicom_node.report.findings import Evaluation, Measurement, NotMeasured

PRIVATE_SCHEME = "99ECHOVFM"
PRIVATE_SCHEME_NAME = "Echo AI node private codes"
ORGANIZATION = "Echo AI node"


def _code(value: str, scheme: str, meaning: str) -> CodedConcept:
    return CodedConcept(value=value, scheme_designator=scheme, meaning=meaning)


# --- Structure (TID 1500, 1501, 1001, 1002, 1004, 1204, 1600) ---
REPORT = _code("126000", "DCM", "Imaging Measurement Report")
LANGUAGE = _code("121049", "DCM", "Language of Content Item and Descendants")
ENGLISH = _code("en-US", "RFC5646", "English (United States)")
OBSERVER_TYPE = _code("121005", "DCM", "Observer Type")
DEVICE = _code("121007", "DCM", "Device")
DEVICE_UID = _code("121012", "DCM", "Device Observer UID")
DEVICE_NAME = _code("121013", "DCM", "Device Observer Name")
DEVICE_MANUFACTURER = _code("121014", "DCM", "Device Observer Manufacturer")
DEVICE_MODEL = _code("121015", "DCM", "Device Observer Model Name")
DEVICE_SERIAL = _code("121016", "DCM", "Device Observer Serial Number")
PROCEDURE = _code("121058", "DCM", "Procedure reported")
ECHOCARDIOGRAPHY = _code("40701008", "SCT", "Echocardiography")
IMAGE_LIBRARY = _code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = _code("126200", "DCM", "Image Library Group")
LIBRARY_SOURCE = _code("260753009", "SCT", "Source")
MODALITY = _code("121139", "DCM", "Modality")
ULTRASOUND = _code("US", "DCM", "Ultrasound")
PIXEL_ROWS = _code("110910", "DCM", "Pixel Data Rows")
PIXEL_COLUMNS = _code("110911", "DCM", "Pixel Data Columns")
MEASUREMENTS = _code("126010", "DCM", "Imaging Measurements")
GROUP = _code("125007", "DCM", "Measurement Group")
TRACKING_ID = _code("112039", "DCM", "Tracking Identifier")
TRACKING_UID = _code("112040", "DCM", "Tracking Unique Identifier")
FINDING = _code("121071", "DCM", "Finding")
FINDING_SITE = _code("363698007", "SCT", "Finding Site")
QUALITATIVE = _code("C0034375", "UMLS", "Qualitative Evaluations")
COMMENT = _code("121106", "DCM", "Comment")
CONCLUSION = _code("121077", "DCM", "Conclusion")
IMAGE_REGION = _code("111030", "DCM", "Image Region")
SOURCE_IMAGE = _code("121324", "DCM", "Source Image")
ILLUSTRATION = _code("121200", "DCM", "Illustration of ROI")  # CID 7003
PROCESSED_IMAGE = _code("121322", "DCM", "Source image for image processing operation")  # CID 7202
SUMMARY = _code("SUMMARY", PRIVATE_SCHEME, "Summary of the AI report on one page")
IMAGING_REPORT = _code("18748-4", "LN", "Diagnostic Imaging Report")  # CID 7020
SOURCE_OF_MEASUREMENT = _code("121112", "DCM", "Source of Measurement")

# --- What is measured ---
LEFT_VENTRICLE = _code("87878005", "SCT", "Left ventricle")
AORTIC_VALVE = _code("34202007", "SCT", "Aortic Valve")
METHOD = _code("370129005", "SCT", "Measurement Method")
VIDEO_REGRESSION = _code("DLVR", PRIVATE_SCHEME, "Deep learning video regression")
DERIVATION = _code("121401", "DCM", "Derivation")
MEAN = _code("373098007", "SCT", "Mean")
UNCERTAINTY = _code("371884006", "SCT", "+/-, range of measurement uncertainty")  # CID 225
SEVERITY = _code("246112005", "SCT", "Severity")
IMAGE_VIEW = _code("111031", "DCM", "Image View")

MEASURED = MappingProxyType(
    {
        Measurement.LVEF: _code("18043-0", "LN", "Left Ventricular Ejection Fraction by US"),  # CID 12200
        Measurement.LVEDV: _code("18026-5", "LN", "Left Ventricular End Diastolic Volume"),  # CID 12202
        Measurement.LVESV: _code("18148-7", "LN", "Left Ventricular End Systolic Volume"),  # CID 12202
    }
)
EVALUATED = MappingProxyType(
    {
        Evaluation.LVEF_REDUCED: _code("371862006", "SCT", "Depression of left ventricular systolic function"),
        Evaluation.AORTIC_STENOSIS: _code("60573004", "SCT", "Aortic stenosis"),
    }
)

# --- Answers ---
PRESENCE = MappingProxyType(  # CID 240
    {"present": _code("52101004", "SCT", "Present"), "absent": _code("272519000", "SCT", "Absent")}
)
GRADES = MappingProxyType(  # CID 3716
    {
        "no": _code("260413007", "SCT", "None"),
        "mild": _code("255604002", "SCT", "Mild"),
        "mildtomod": _code("371923003", "SCT", "Mild to Moderate"),
        "moderate": _code("6736007", "SCT", "Moderate"),
        "severe": _code("24484000", "SCT", "Severe"),
    }
)
UNDETERMINED = _code("373068000", "SCT", "Undetermined")
VIEWS = MappingProxyType(  # CID 12226
    {
        "A4C": _code("399214001", "SCT", "Apical four chamber"),
        "A2C": _code("399232001", "SCT", "Apical two chamber"),
        "PLAX": _code("399139001", "SCT", "Parasternal long axis"),
        "PSAX": _code("399306005", "SCT", "Parasternal short axis"),
    }
)
NOT_MEASURED = MappingProxyType(  # CID 42
    {
        NotMeasured.NOT_ATTEMPTED: _code("114007", "DCM", "Measurement not attempted"),
        NotMeasured.FAILURE: _code("114006", "DCM", "Measurement failure"),
        NotMeasured.INDETERMINATE: _code("114011", "DCM", "Value indeterminate"),
        NotMeasured.OUT_OF_RANGE: _code("114009", "DCM", "Value out of range"),
    }
)

# --- Probabilities: ours, since viewers show the meaning alone and four rows named "Probability" say nothing ---
P_REDUCED = _code("P-REDEF", PRIVATE_SCHEME, "Probability of depressed LV systolic function")
P_VIEWS = MappingProxyType(
    {
        view: _code(f"P-VIEW-{view}", PRIVATE_SCHEME, f"Probability of {code.meaning.lower()} view")
        for view, code in VIEWS.items()
    }
)
P_GRADES = MappingProxyType(
    {
        "no": _code("P-AS-NO", PRIVATE_SCHEME, "Probability of no aortic stenosis"),
        "mild": _code("P-AS-MILD", PRIVATE_SCHEME, "Probability of mild aortic stenosis"),
        "mildtomod": _code("P-AS-MILDTOMOD", PRIVATE_SCHEME, "Probability of mild to moderate aortic stenosis"),
        "moderate": _code("P-AS-MODERATE", PRIVATE_SCHEME, "Probability of moderate aortic stenosis"),
        "severe": _code("P-AS-SEVERE", PRIVATE_SCHEME, "Probability of severe aortic stenosis"),
    }
)

# --- Algorithm identification (TID 4019) ---
ALGORITHM_NAME = _code("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION = _code("111003", "DCM", "Algorithm Version")
ALGORITHM_PARAMETERS = _code("111002", "DCM", "Algorithm Parameters")
ALGORITHM_FAMILY = _code("111000", "DCM", "Algorithm Family")
ARTIFICIAL_INTELLIGENCE = _code("123110", "DCM", "Artificial Intelligence")

# --- Units ---
UNITS = MappingProxyType(
    {
        "%": _code("%", "UCUM", "percent"),
        "mL": _code("ml", "UCUM", "milliliter"),
        "pixels": _code("{pixels}", "UCUM", "Pixels"),
    }
)
