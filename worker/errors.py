"""The worker's errors.

WorkerError
+-- NoEnsemble      the ensemble of the configuration cannot be used: nothing is claimed until it can
"""


class WorkerError(Exception):
    """Something that the worker expected could go wrong."""


class NoEnsemble(WorkerError):
    """The ensemble cannot be loaded; the message names the folder and the remedy."""
