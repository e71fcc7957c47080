"""The errors a user of dynprune-rt meets. Each message names the culprit and the way out."""

from __future__ import annotations


class DynpruneError(Exception):
    """Base class of every error raised on purpose by this package."""


class ConversionError(DynpruneError):
    """The model cannot be converted as it stands; the message says which line and what to do."""


class UnsupportedOperatorError(ConversionError):
    """One or more operators have no counterpart in the IR; the message lists all of them."""


class VerificationError(DynpruneError):
    """The converted program does not reproduce the model, or an IR graph breaks its own rules."""


class QuantizationError(DynpruneError):
    """The program or the calibration data cannot be quantized; the message says which layer and why."""


class ArtifactError(DynpruneError):
    """A ``.dpr`` file is truncated, damaged, hostile or of an unknown version."""


class InputError(DynpruneError, ValueError):
    """An input of ``run`` or ``profile`` has the wrong shape, dtype, rank or device."""


class DeviceError(DynpruneError):
    """The requested device or instruction set is unknown or not usable on this machine."""


class DataError(DynpruneError):
    """Training data is missing, damaged or inconsistent; the message names the file and what was expected."""


class TrainingError(DynpruneError):
    """A model cannot be trained as asked: nothing to gate, an impossible target, a loss that is not finite."""
