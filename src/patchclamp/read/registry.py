"""All readings by name. `@readings.add("tokens")` on a function makes `patchclamp read tokens`.

The name of a reading's first parameter says what it works on: `model` or `recording`. It returns an object with
`save(path)`, `to_dict()` and `rows()`, a list of plain dicts for the table and `--json`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from patchclamp.core.registry import Registry


class Reading(Protocol):
    """What a reading returns."""

    def save(self, path: Any) -> Any:
        """Write `patchclamp.reading/1` (see `files.py` of this room); returns the path."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        ...

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per unit or result, for a table."""
        ...


readings: Registry[Callable[..., Any]] = Registry("reading", room="patchclamp.read")
