"""Every error that the library raises on purpose.

`MechanexError` is the base of all. An error about an argument is a `ValueError` too, so that code which expects Python's
own types keeps working. Messages say what was given, what was expected and what to do.
"""

from __future__ import annotations


class MechanexError(Exception):
    """Base of all errors of this library, with `message`, `status_code` and `details` as in the hosted API."""

    def __init__(self, message: str, *, status_code: int | None = None, details: object = None):
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.details = details


class ArgumentError(MechanexError, ValueError):
    """An argument has a value that cannot be used."""


class UnexpectedArgumentError(MechanexError, TypeError):
    """A function was called with a keyword argument that it does not have."""


class NotAcceptedError(MechanexError):
    """No candidate of a policy was accepted, and the call asked for an error; `details` holds the traces of such runs."""


class ModelError(MechanexError):
    """A model cannot be found, fetched, read or built."""


class ModelNotFoundError(ModelError, LookupError):
    """No model has this name, or no model is loaded."""


class CheckpointError(ModelError):
    """Files of a model are missing, truncated, corrupt or of an unknown kind."""


class StorageError(MechanexError, OSError):
    """A file of the library's own cannot be written or removed."""


class NotLocalError(MechanexError, NotImplementedError):
    """The call resolves to something that this build cannot do (yet): the message names the argument and the way out."""


class Verbatim(str):
    """Words that describe a value, shown in an error as they are."""

    __slots__ = ()
    __repr__ = str.__str__


def shown(value: object) -> str:
    """The beginning of a value's `repr`, 120 characters at most; its type where it has none, as a list that holds itself."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."


def expected(argument: str, got: object, expected: str, action: str = "") -> ArgumentError:
    """Make an argument error in the one form they have: got (the value, or `Verbatim` words about it), expected, what to do."""
    return ArgumentError(f"{argument}: got {shown(got)}; expected {expected}." + (f" {action}" if action else ""))


class ConstraintError(ArgumentError):
    """A regular expression, schema or grammar that is wrong, or that cannot be held exactly."""
