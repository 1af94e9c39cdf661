"""What the node counts, for Prometheus; what is asked at each scrape instead is in `dicom_node.web.metrics`."""
