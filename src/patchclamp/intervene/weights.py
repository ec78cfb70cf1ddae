"""Interventions written into weights: every affine map is collected first, then each matrix is changed once.

A matrix is worked on in float64 and rounded once, however many changes meet in it, so that a list of them is as exact as its
dtype allows. Changes of what a matrix reads are written last first (W A2 A1 for A1, then A2), those of what it gives in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from patchclamp.core.errors import Error, ModelError
from patchclamp.intervene.affine import affine_maps
from patchclamp.intervene.biases import add_biases, bias_switch
from patchclamp.intervene.changes import Item
from patchclamp.intervene.kinds import Change
from patchclamp.intervene.output_head import untie
from patchclamp.intervene.writers import Writer, Written, routes

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


def write_changes(items: Iterable[Change], edited: LanguageModel) -> dict[str, Any]:
    """Write changes, in order, into the weights of a model, in place; returns config attributes that had to change.

    Raises ModelError, with the number of the change where there are several, for one that weights can't hold; weights may
    have changed by then, so give a copy.
    """
    numbered = list(enumerate(items, 1))
    meeting = _meetings(numbered, edited)
    changes = _with_biases(edited, meeting, len(numbered))
    if edited.anatomy.tied and any(here.writer.table for here in meeting):
        changes |= untie(edited.hf)
        edited.anatomy.tied = False
    with torch.no_grad():
        for here in meeting:
            here.write(edited)
    for number, item in reversed(numbered):  # other kinds act on what the output layer reads: the last comes first
        if not isinstance(item, Item):
            with _Numbered(number, item, len(numbered)):
                changes |= item.write(edited)
    return changes


def check_writable(items: Iterable[Change], model: LanguageModel) -> None:
    """Raise ModelError for what the weights of a model can't hold, as far as it can be told before the model is copied."""
    numbered = list(enumerate(items, 1))
    _meetings(numbered, model)
    for number, item in numbered:
        if type(item).write is Change.write:  # no weight form at all: it says why
            with _Numbered(number, item, len(numbered)):
                item.write(model)


def _meetings(numbered: list[tuple[int, Change]], model: LanguageModel) -> list[_Meeting]:
    """Where interventions on units and directions are written, matrix by matrix."""
    meeting: dict[Writer, _Meeting] = {}
    for number, item in numbered:
        if not isinstance(item, Item):
            continue
        with _Numbered(number, item, len(numbered)):
            for tap, affine in affine_maps(item):
                for written in routes(model, tap, affine):
                    here = meeting.setdefault(written.writer, _Meeting(written.writer, tap[0]))
                    here.maps.append(written)
                    if written.affine.constant and here.constant is None:
                        here.constant = (number, item)
    return list(meeting.values())


@dataclass(eq=False)
class _Meeting:
    """All that is written into one matrix. constant: the first change that needs a bias."""

    writer: Writer
    site: str
    maps: list[Written] = field(default_factory=list)
    constant: tuple[int, Change] | None = None

    def write(self, model: LanguageModel) -> None:
        live, live_bias = self.writer.matrix(model), self.writer.offset(model)
        weight = _wide(live)
        table = self.writer.table and self.constant is not None
        bias = weight.new_zeros(len(weight)) if table else None if live_bias is None else _wide(live_bias)
        ordered = sorted(self.maps, key=lambda written: written.stage)
        for written in ordered:
            if not written.behind:
                _before(written, weight, bias)
        for written in reversed(ordered):
            if written.behind:
                _behind(written, weight, bias)
        if table and bias is not None:
            weight += bias[:, None] / self.writer.times
        self._store(weight, live)
        if live_bias is not None and bias is not None:
            self._store(bias, live_bias)

    def _store(self, wide: torch.Tensor, live: torch.Tensor) -> None:
        new = wide.to(live.dtype)
        if not bool(torch.isfinite(new).all()):
            raise ModelError(
                f"{self.writer.weight} would hold infinite numbers in {live.dtype}; use float32 or a milder change"
            )
        live.copy_(new)


def _wide(live: torch.Tensor) -> torch.Tensor:
    """A float64 copy; float32 on devices that have no float64."""
    return live.detach().to(torch.float32 if live.device.type == "mps" else torch.float64, copy=True)


def _before(written: Written, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    if written.part is None:
        written.affine.before(weight, bias)
        return
    rows = written.part.to(weight.device)
    mine, own = weight[rows], None if bias is None else bias[rows]
    written.affine.before(mine, own)
    weight[rows] = mine
    if bias is not None and own is not None:
        bias[rows] = own


def _behind(written: Written, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    if written.part is None:
        written.affine.behind(weight, bias)
        return
    columns = written.part.to(weight.device)
    mine = weight[:, columns]
    written.affine.behind(mine, bias)
    weight[:, columns] = mine


def _with_biases(model: LanguageModel, meeting: list[_Meeting], of: int) -> dict[str, Any]:
    """Add the biases that constants need and matrices lack, by config switches (one for the MLPs, one for attention)."""
    changes: dict[str, Any] = {}
    lacking = [one for one in meeting if one.constant and not one.writer.table and one.writer.offset(model) is None]
    for attention in (False, True):
        here = [one for one in lacking if (one.site in _ATTENTION) == attention]
        if not here or here[0].constant is None:
            continue
        number, item = here[0].constant
        with _Numbered(number, item, of):
            switch, names = bias_switch(model.hf, sorted({str(one.writer.bias) for one in here}))
        add_biases(model.hf, switch, names)
        changes[switch] = True
    return changes


_ATTENTION = ("attn", "attn_out", "q", "k", "v")


class _Numbered:
    """Context in which an error says which change of a list it is about."""

    def __init__(self, number: int, item: Change, of: int) -> None:
        self.words = "" if of == 1 else f"change {number} of {of} ({item.describe()}) can't be written: "

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, problem: Any, trace: Any) -> None:
        if isinstance(problem, Error) and self.words:
            raise type(problem)(f"{self.words}{problem}") from problem
