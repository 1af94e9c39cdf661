"""The model's errors, one class for each thing a caller does differently.

ModelError
+-- ClipError            a file gives no clip: the loop is not analysed, the reason goes into the report
|   +-- UnreadableLoop   the bytes are damaged or in a form that nothing here decodes
|   +-- NotALoop         the picture is fine, but carries no number (still, Doppler, too short ...)
+-- BundleError          a bundle or an ensemble does not load; nothing of it is used
+-- WeightsError         a checkpoint does not fit; nothing of it is imported
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.clip.select import Reason


class ModelError(Exception):
    """Something that the model expected could go wrong."""


class ClipError(ModelError):
    """A file gives no clip."""


class UnreadableLoop(ClipError):
    """The bytes cannot be turned into pictures; the message says what is wrong, without patient data."""


class NotALoop(ClipError):
    """The instance is readable but carries no number; str() is the reason for the cardiologist."""

    def __init__(self, reason: "Reason", detail: str = "") -> None:
        """Keep the reason of the closed set and what makes it true here."""
        super().__init__(f"{reason.text} ({detail})" if detail else reason.text)
        self.reason = reason
        self.detail = detail


class BundleError(ModelError):
    """A bundle or an ensemble does not load; the message names the file and the remedy."""


class WeightsError(ModelError):
    """A checkpoint does not fit; the message lists the keys that are missing or too many."""
