"""Train, evaluate and publish Echo-Vision-FM ensembles."""
