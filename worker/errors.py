"""The worker's errors.

WorkerError
+-- NoEnsemble      the ensemble of the configuration cannot be used: nothing is claimed until it can
+-- UnreadableNow   the machine does not give a file back, which says nothing of the file: another attempt
"""


class WorkerError(Exception):
    """Something that the worker expected could go wrong."""


class NoEnsemble(WorkerError):
    """The ensemble cannot be loaded; the message names the folder and the remedy."""


class UnreadableNow(WorkerError):
    """The machine does not give a file back now: no verdict on the loop in it."""
