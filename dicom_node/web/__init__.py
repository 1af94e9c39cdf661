"""The web side of the node: health, metrics and the studies as JSON and as a plain list."""
