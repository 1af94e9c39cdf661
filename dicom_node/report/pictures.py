"""The pictures that go out with a report: where the networks looked in each loop, and the report on one page.

Any viewer that plays a multi-frame image shows the first, and any viewer at all the second, as a picture or as a PDF.
They are drawn by whoever has the pixels; here they become DICOM.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID as PydicomUID
from pydicom.uid import (
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from dicom_node.identity import UID
from dicom_node.report import concepts
from dicom_node.report.findings import LoopFinding, PictureKind
from dicom_node.report.origin import Origin

FRAME_TIME_MS = 40.0
"""Of a loop whose header has none: viewers want one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A finished picture."""

    kind: PictureKind
    sop_class_uid: str
    sop_instance_uid: UID
    series_instance_uid: UID
    loop: str | None
    """SOP Instance UID of the loop that it shows; None: of the whole study."""
    part10: bytes
    """The file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cine:
    """A moving picture, encoded."""

    frames: tuple[bytes, ...]
    """JPEG baseline, 8 bits, YCbCr 4:2:2, all of one size."""
    rows: int
    columns: int
    frame_time_ms: float | None
    """None: the loop does not say."""
    source_frames: tuple[int, ...]
    """The loop's frame under each of them, counted from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The report on one page, encoded twice."""

    jpeg: bytes
    """JPEG baseline, 8 bits, YCbCr 4:2:2."""
    rows: int
    columns: int
    pdf: bytes


def saliency(origin: Origin, loop: LoopFinding, number: int, cine: Cine) -> Picture:
    """Return where the networks looked in a loop.

    Args:
        origin: of the report.
        loop: the loop.
        number: as the report counts it, from 1.
        cine: its frames with the heat map over them.
    """
    image = _capture(origin, PictureKind.SALIENCY, cine.frames, rows=cine.rows, columns=cine.columns, number=number)
    image.SOPInstanceUID = origin.uid(f"saliency/{loop.sop_instance_uid}")
    image.SOPClassUID = MultiFrameTrueColorSecondaryCaptureImageStorage
    image.Modality = "US"
    image.NumberOfFrames = len(cine.frames)
    image.FrameTime = f"{cine.frame_time_ms or FRAME_TIME_MS:.6g}"
    image.FrameIncrementPointer = 0x00181063  # Frame Time
    image.DerivationDescription = (
        f"Loop {number}: attention rollout of the networks, mean over all tokens and networks, drawn over the loop"
        f"{'' if cine.frame_time_ms else '; the loop gives no frame time'}"
    )
    source = _reference(loop)
    source.ReferencedFrameNumber = list(cine.source_frames)
    source.PurposeOfReferenceCodeSequence = [Dataset(concepts.PROCESSED_IMAGE)]
    image.SourceImageSequence = [source]
    return _finished(origin, PictureKind.SALIENCY, image, JPEGBaseline8Bit, loop.sop_instance_uid)


def summary(origin: Origin, page: Page) -> Picture:
    """Return the page as a picture."""
    image = _capture(origin, PictureKind.SUMMARY, [page.jpeg], rows=page.rows, columns=page.columns, number=1)
    image.SOPInstanceUID = origin.uid("summary")
    image.SOPClassUID = SecondaryCaptureImageStorage
    image.Modality = "OT"
    image.DerivationDescription = "The report on one page"
    return _finished(origin, PictureKind.SUMMARY, image, JPEGBaseline8Bit, None)


def summary_pdf(origin: Origin, page: Page, loops: Sequence[LoopFinding]) -> Picture:
    """Return the page as a document (PS3.3 A.45.1).

    Args:
        origin: of the report.
        page: the page.
        loops: the loops of which it shows a picture.
    """
    document = Dataset()
    origin.sign(document)
    document.SOPClassUID = EncapsulatedPDFStorage
    document.SOPInstanceUID = origin.uid("summary_pdf")
    document.SeriesInstanceUID = origin.series_uid("summary_pdf")
    document.SeriesNumber = _SERIES[PictureKind.SUMMARY_PDF]
    document.InstanceNumber = origin.revision
    document.Modality = "DOC"
    document.ConversionType = "WSD"
    document.AcquisitionDateTime = None
    document.BurnedInAnnotation = "YES"
    document.DocumentTitle = concepts.SUMMARY.meaning
    document.ConceptNameCodeSequence = [Dataset(concepts.IMAGING_REPORT)]
    document.VerificationFlag = "UNVERIFIED"
    if loops:
        document.SourceInstanceSequence = [_reference(one) for one in loops]
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.EncapsulatedDocumentLength = len(page.pdf)
    document.EncapsulatedDocument = page.pdf + b"\0" * (len(page.pdf) % 2)
    return _finished(origin, PictureKind.SUMMARY_PDF, document, ExplicitVRLittleEndian, None)


_SERIES = {PictureKind.SALIENCY: 9001, PictureKind.SUMMARY: 9002, PictureKind.SUMMARY_PDF: 9003}


def _capture(
    origin: Origin, kind: PictureKind, frames: Sequence[bytes], *, rows: int, columns: int, number: int
) -> Dataset:
    """Return a colour image of JPEG frames, but for what its kind adds (PS3.3 A.8)."""
    image = Dataset()
    origin.sign(image)
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.ConversionType = "WSD"
    image.SeriesInstanceUID = origin.series_uid(kind)
    image.SeriesNumber = _SERIES[kind]
    image.InstanceNumber = 1000 * (origin.revision - 1) + number  # a series keeps the pictures of every revision
    image.PatientOrientation = None
    image.Laterality = None  # type 2C: dciodvfy takes the heart for a paired organ
    image.BurnedInAnnotation = "YES"
    image.SamplesPerPixel = 3
    image.PhotometricInterpretation = "YBR_FULL_422"
    image.PlanarConfiguration = 0
    image.Rows = rows
    image.Columns = columns
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelRepresentation = 0
    image.LossyImageCompression = "01"
    image.LossyImageCompressionRatio = f"{3 * rows * columns * len(frames) / sum(map(len, frames)):.4g}"
    image.LossyImageCompressionMethod = "ISO_10918_1"
    image.PixelData = encapsulate(list(frames))
    image["PixelData"].VR = "OB"
    return image


def _reference(loop: LoopFinding) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = loop.sop_class_uid
    item.ReferencedSOPInstanceUID = loop.sop_instance_uid
    return item


def _finished(
    origin: Origin, kind: PictureKind, content: Dataset, transfer_syntax_uid: PydicomUID, loop: str | None
) -> Picture:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = content.SOPClassUID
    meta.MediaStorageSOPInstanceUID = content.SOPInstanceUID
    meta.TransferSyntaxUID = transfer_syntax_uid
    content.file_meta = meta
    return Picture(
        kind=kind,
        sop_class_uid=str(content.SOPClassUID),
        sop_instance_uid=UID(str(content.SOPInstanceUID)),
        series_instance_uid=UID(str(content.SeriesInstanceUID)),
        loop=loop,
        part10=origin.written(content),
    )
