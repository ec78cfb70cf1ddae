"""A concept as texts that show it and texts that don't."""

from __future__ import annotations

from dataclasses import dataclass

from patchclamp.core.errors import InputError


@dataclass(frozen=True)
class Concept:
    """A concept as texts: `positives` that show it and `neutrals` that don't. description: in words, for a judge."""

    name: str
    positives: tuple[str, ...]
    neutrals: tuple[str, ...]
    description: str = ""

    def __post_init__(self) -> None:
        for what, texts in (("positives", self.positives), ("neutrals", self.neutrals)):
            if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise InputError(f"the {what} of the concept {self.name!r} must be a list of texts that aren't empty")
