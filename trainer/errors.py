"""The trainer's errors, one class for each thing a caller does differently.

TrainerError               one line for the user: what, which file or key, what to do; exit code 1
+-- UsageError             the call or the configuration is wrong; exit code 2
+-- DataError              a data set or a store is wrong (a column is missing, a patient is on both sides of a split)
+-- RunError               a run cannot be used or cannot go on (incomplete, other architecture, loss not finite)
+-- PublishError           an ensemble is not put into use; what was in use stays so
"""


class TrainerError(Exception):
    """Something that the trainer expected could go wrong."""


class UsageError(TrainerError):
    """The call or the configuration is wrong; nothing was done."""


class DataError(TrainerError):
    """A data set or a store is wrong; the message names the file and the remedy."""


class RunError(TrainerError):
    """A run cannot be used or cannot go on; what it had kept is still there."""


class PublishError(TrainerError):
    """An ensemble is not put into use; the message says what speaks against it."""
