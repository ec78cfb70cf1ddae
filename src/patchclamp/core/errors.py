"""The errors that patchclamp raises on purpose. Each message says what was given, what was expected, and what to do."""

from __future__ import annotations


class Error(Exception):
    """Base of all expected failures; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 1


class InputError(Error, ValueError):
    """What the caller gave can't be used: a missing file, an unknown label, a value out of range."""

    exit_code = 2


class ModelError(Error):
    """A model can't be loaded or read: unsafe weights, NaN weights, a family whose units can't be found."""

    exit_code = 2


class MismatchError(InputError):
    """Two things that must belong together don't: a unit set of another model, a recording of another corpus."""


class DamagedError(Error):
    """A file of ours is truncated, altered or not ours; the message names it."""


class CheckError(Error):
    """A self-check failed: the model's numbers change under observation, padding or batching."""
