"""The Echo-Vision-FM network, its clips, bundles, ensembles and aggregation (no DICOM network)."""
