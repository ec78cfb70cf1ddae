"""What finders ask of a recording; `patchclamp.Recording` offers it, and so may anything else that keeps statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class RecordingLike(Protocol):
    """Statistics of all units of some sites per label; folder is None for one that is held in memory only."""

    folder: Path | None

    @property
    def labels(self) -> Sequence[str]: ...

    @property
    def sites(self) -> Sequence[str]: ...

    @property
    def statistics(self) -> Sequence[str]: ...

    @property
    def model(self) -> Mapping[str, Any]: ...

    @property
    def corpus(self) -> Mapping[str, Any]: ...

    @property
    def fingerprint(self) -> str: ...

    def get(self, statistic: str, label: str, site: str = "mlp") -> Any: ...
