"""From a file to the clip that the network sees: the one road of trainer and worker."""
