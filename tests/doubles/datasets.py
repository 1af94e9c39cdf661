"""Data sets as bytes, in any transfer syntax."""

from io import BytesIO

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

from tests.doubles.wire_peer import EXPLICIT_LITTLE, US_MULTIFRAME

STUDY = "1.2.826.0.1.5"


def loop(sop_instance: str = "1.2.3.4", sop_class: str = US_MULTIFRAME, study: str = STUDY) -> Dataset:
    """Return the header of an ultrasound loop, with a sequence and a private element."""
    dataset = Dataset()
    dataset.SOPClassUID = UID(sop_class)
    dataset.SOPInstanceUID = UID(sop_instance)
    dataset.StudyInstanceUID = UID(study)
    dataset.SeriesInstanceUID = UID("1.2.826.0.1.6")
    dataset.Modality = "US"
    dataset.NumberOfFrames = 30
    region = Dataset()
    region.RegionDataType = 1
    dataset.SequenceOfUltrasoundRegions = [region]
    dataset.private_block(0x0011, "ECHO TEST", create=True).add_new(1, "LO", "kept too")
    return dataset


def encoded(dataset: Dataset, transfer_syntax: str = EXPLICIT_LITTLE, fragments: tuple[bytes, ...] = ()) -> bytes:
    """Return the data set's bytes as they go over the wire, with `fragments` as compressed pixel data."""
    if fragments:
        items = b"".join(b"\xfe\xff\x00\xe0" + len(piece).to_bytes(4, "little") + piece for piece in (b"", *fragments))
        dataset.add_new(0x7FE00010, "OB", items)
        dataset["PixelData"].is_undefined_length = True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    dataset.file_meta.MediaStorageSOPClassUID = UID("1.2.3")
    dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")  # data_part cuts it off
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return data_part(buffer.getvalue())


def data_part(file: bytes) -> bytes:
    """Return what stands after preamble and group 2 of a Part 10 file."""
    length = int.from_bytes(file[140:144], "little")  # value of (0002,0000)
    return file[144 + length :]
