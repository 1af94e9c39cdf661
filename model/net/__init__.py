"""The Echo-Vision-FM network: tensors only, no files, no devices, no configuration files."""
