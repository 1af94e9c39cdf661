"""Receive, keep, complete, report and deliver echo studies: the DICOM side of the node (no torch)."""
