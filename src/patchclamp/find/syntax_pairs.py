"""Minimal pairs of word order: a sentence against the same units with no neighbours left in order."""

from __future__ import annotations

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data.task_items import TaskItem
from patchclamp.data.tasks import Task
from patchclamp.find.syntax_streams import Sentences, control_order


def order_pairs(sentences: Sentences, *, name: str = "word order", seed: int = 0) -> Task:
    """One pair per sentence: as written, and in the order of the tagging control. Scored by `patchclamp.measure.pairs`.

    Both begin with a capital letter if that is how sentences are written (all begin with one, and other units don't), so that
    case tells nothing; a first word that is also written with a capital elsewhere keeps it. A sentence whose broken order
    reads the same is left out; InputError if none is left.
    """
    later = {unit for row in sentences.units for unit in row[1:]}
    cased = all(row[0][:1].isupper() for row in sentences.units) and any(unit[:1].islower() for unit in later)
    items = []
    for number, units in enumerate(sentences.units):
        order = control_order(len(units), np.random.default_rng([seed, number]))
        first, *others = units
        plain = (first[:1].lower() + first[1:], *others) if cased and first not in later else units
        good, bad = (_written(row, sentences.gap, cased) for row in (plain, [plain[at] for at in order]))
        if good != bad:
            labels = {"skill": "word order", "language": name}
            items.append(TaskItem("", (good,), (good, bad), labels, id=f"{name}-{number}"))
    if not items:
        raise InputError(f"{name}: no sentence reads differently in another order")
    return Task.of(items, name=name)


def _written(units: tuple[str, ...] | list[str], gap: str, cased: bool) -> str:
    text = gap.join(units)
    return text[:1].upper() + text[1:] if cased else text
