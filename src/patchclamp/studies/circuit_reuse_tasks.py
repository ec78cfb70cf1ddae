"""The two tasks of the circuit-reuse study, each with what its four stages need: spots, candidates, an earlier corruption."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.data.generate.colored_objects import colored_objects
from patchclamp.data.generate.ioi import ioi
from patchclamp.data.paired import PairedItem, PairedTask, Pairs

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

FRAMES = ("auto", "paper", "demo")


@dataclass(frozen=True, eq=False)
class Side:
    """One task of the study.

    name: "ioi" or "colors". task: minimal pairs that change one late word. earlier: pairs that differ before the keys' position
    too (else keys there could not differ). values, keys: spots of stages 3 and 4. candidates: the list of words that compete.
    chance: accuracy of guessing among them. frames: which sentence frames.
    """

    name: str
    task: PairedTask
    earlier: PairedTask
    values: str
    keys: str
    candidates: str
    chance: float
    frames: str

    def right(self, pairs: Pairs) -> Tensor:
        """(n, 1) where the right candidate stands in the scene."""
        return pairs.spots["IO" if self.name == "ioi" else "right"][:, None]

    def wrong(self, pairs: Pairs) -> Tensor:
        """(n, m) where the wrong candidates stand, filled up with -1."""
        if self.name == "ioi":
            return torch.stack([pairs.spots["S1"], pairs.spots["S2"]], 1)
        return pairs.lists["wrong colors"]

    def question(self, pairs: Pairs) -> Tensor:
        """(n, seq) bool: the tokens between the last candidate (or object) and the end, which ask."""
        listed = [pairs.lists[name].max(1).values for name in ("names", "colors", "objects") if name in pairs.lists]
        last = torch.stack(listed).max(0).values
        if self.name == "ioi":
            last = torch.maximum(pairs.spots["IO"], pairs.spots["S1"])
        columns = torch.arange(pairs.clean.shape[1], device=last.device)[None, :]
        return (columns > last[:, None]) & (columns < pairs.end[:, None])


def both_tasks(
    model: LanguageModel, n: int, *, language: str, templates: str, shots: int | None, n_objects: int, seed: int
) -> tuple[Side, Side]:
    """Indirect objects and coloured objects; the demo model's frames where its tokenizer splits the paper's words."""
    if templates not in FRAMES:
        raise InputError(f"templates={templates!r}; it is one of {', '.join(FRAMES)}")
    frames, names = _first_that_fits(
        templates, lambda made: ioi(n, model.tokenizer, language=language, seed=seed, templates=made)
    )
    other = ioi(n, model.tokenizer, language=language, seed=seed, templates=frames, corruption="ABC")
    first = Side("ioi", names, other, "S2", "S1+1", "names", 0.5, frames)

    def scene(made: str) -> PairedTask:
        example = (1 if made == "paper" else 0) if shots is None else shots
        how: dict[str, Any] = {"language": language, "seed": seed, "templates": made, "n_objects": n_objects}
        return colored_objects(n, model.tokenizer, shots=example, **how)

    frames, scenes = _first_that_fits(templates, scene)
    return first, Side("colors", scenes, swapped_scene(scenes), "asked", "object+1", "colors", 1 / n_objects, frames)


def _first_that_fits(templates: str, make: Any) -> tuple[str, PairedTask]:
    if templates != "auto":
        return templates, make(templates)
    try:
        return "paper", make("paper")
    except InputError:
        return "demo", make("demo")


def swapped_scene(task: PairedTask) -> PairedTask:
    """Coloured objects corrupted in the scene: the asked object and the other one change places, the question stays."""
    return replace(task, items=tuple(map(_swapped, task.items)), origin={"kind": "swapped scene", "of": task.identity})


def _swapped(item: PairedItem) -> PairedItem:
    spans = [item.lists["objects"][int(item.labels[key])] for key in ("asked", "other")]
    (start, stop), (later, end) = sorted(spans)
    text = item.clean
    text = text[:start] + text[later:end] + text[stop:later] + text[start:stop] + text[end:]
    return replace(item, corrupt=text)
