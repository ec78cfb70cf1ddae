"""What clamping units does to perplexity, against matched-random controls: `effect(model, sets, on=text)`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import Corpus
from patchclamp.intervene.interventions import SCOPES
from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.measure.effect_runs import PLAIN, Run, run_key, runs_of, score_runs
from patchclamp.measure.effect_table import Effects
from patchclamp.measure.holm import holm
from patchclamp.measure.likelihood import Documents, Reading
from patchclamp.measure.permutation import rank_p, sign_flip
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.recording import Recording


def effect(
    model: LanguageModel,
    units: UnitSet | Mapping[str, UnitSet],
    *,
    on: Corpus,
    to: float | str | None = None,
    scale: float | None = None,
    add: float | None = None,
    scope: str = "all",
    controls: int = 10,
    permutations: int = 9999,
    resamples: int = 1000,
    seed: int = 0,
    recording: Recording | None = None,
    label: str | None = None,
    batch_tokens: int = 4096,
    max_length: int | None = None,
    select: Selection | None = None,
    reuse: bool = True,
    quiet: bool = False,
) -> Effects:
    """Change of perplexity of every text when each set is clamped, with controls, intervals and corrected p-values.

    units: one set, or name -> set. to, scale, add: what is done to the units, as in `clamp`; to 0.0 by default; "mean"
    needs recording= (label: whose mean). controls: random sets with as many units in every layer (seed, seed + 1, ...),
    none of them in the set while others are left. Per set and text:
    effect = clamped - plain perplexity; low, high = 95% bootstrap over documents; p = two-sided sign-flip permutation
    over documents of the change of log-loss minus its mean under the controls; p_controls = (k + 1) / (controls + 1)
    with k controls whose effect is at least as large in size; p_holm = p corrected over the whole table (Holm).
    p says that the set differs from the average control on text like this; p_controls whether random sets do as much.
    scope: "prompt" and "generated" need select=Selection(inside=...): a row's first selected token begins what counts as
    generated. reuse: run the blocks below a set's first layer once per batch (same numbers, less time).
    Raises MismatchError for units of another model, InputError for a text without a token to score.
    """
    sets = {"units": units} if isinstance(units, UnitSet) else dict(units)
    given: dict[str, Any] = {"to": to, "scale": scale, "add": add}
    if all(value is None for value in given.values()):
        given["to"] = 0.0
    reading = Reading(batch_tokens, max_length, select or Selection())
    _check(model, sets, given, scope, controls, reading.select)
    notes: list[str] = []
    how = {**given, "scope": scope, "recording": recording, "label": label}
    runs: list[Run] = []
    for name, chosen in sets.items():
        runs += runs_of(model, name, _with_controls(name, chosen, controls, seed, notes), how) if len(chosen) else []
    tables = {}
    for text in on.labels:
        scored = score_runs(model, on, text, reading, runs, scope=scope, reuse=reuse, quiet=quiet)
        tables[text] = _Scored(scored, {name: controls if len(units) else 0 for name, units in sets.items()})
        if tables[text].n < 2:
            notes.append(f"{text!r} has {tables[text].n} document with scored tokens: no interval, and p is 1")
    notes += [
        f"the set {name!r} is empty: its effect is 0 and p is 1" for name, units in sets.items() if not len(units)
    ]
    rows = [
        {"set": name, "text": text, **table.row(name, permutations, resamples, seed), "n_units": len(units)}
        for name, units in sets.items()
        for text, table in tables.items()
    ]
    if len(rows) > 0.01 * (permutations + 1):
        notes.append(
            f"{len(rows)} tests with {permutations} permutations: no corrected p can be below "
            f"{min(1.0, len(rows) / (permutations + 1)):.2g}; give permutations={200 * len(rows)} or more to go lower"
        )
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    for note in notes:
        warnings.warn(note, stacklevel=2)
    keywords = {**given, "scope": scope, "controls": controls, "permutations": permutations, "resamples": resamples}
    source = provenance(
        "effect",
        arguments={**keywords, "seed": seed, "label": label, **reading.to_dict()},
        inputs=_inputs(model, sets, on, recording),
        seed=seed,
    )
    return Effects(rows, {text: table.to_dict() for text, table in tables.items()}, notes, source)


def _check(
    model: LanguageModel,
    sets: Mapping[str, Any],
    given: Mapping[str, Any],
    scope: str,
    controls: int,
    select: Selection,
) -> None:
    if not sets:
        raise InputError("no unit set was given")
    for name, units in sets.items():
        if not isinstance(units, UnitSet):
            raise InputError(f"{name!r} is a {type(units).__name__}; a UnitSet is needed (UnitSet.of(model, names))")
        units.check_model(model)
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise InputError(f"give one of to=, scale=, add=; {', '.join(chosen)} given")
    if not isinstance(given[chosen[0]], int | float | str):
        raise InputError(f"{chosen[0]}= takes one number here, for controls have other units than the set")
    if controls < 0:
        raise InputError(f"controls={controls}; it is a number of random sets, at least 0")
    if scope not in SCOPES:
        raise InputError(f"scope={scope!r}; it is one of {', '.join(SCOPES)}")
    if scope != "all" and select.inside is None:
        raise InputError(
            f"scope={scope!r} on text needs to know what is generated: give documents with such a span and "
            "select=Selection(inside='response') (--select response)"
        )


def _with_controls(name: str, units: UnitSet, controls: int, seed: int, notes: list[str]) -> list[UnitSet]:
    """The set, then its matched-random controls."""
    others = [units.matched_random(seed + number) for number in range(controls)]
    if any(len(other & units) for other in others):
        notes.append(f"the set {name!r} holds more than half of a layer: its controls share units with it")
    return [units, *others]


def _inputs(
    model: LanguageModel, sets: Mapping[str, UnitSet], on: Corpus, recording: Recording | None
) -> dict[str, Any]:
    found: dict[str, Any] = {"model": dict(model.identity), "text": on.identity}
    found["sets"] = {name: {"units": units.names()} for name, units in sets.items()}
    if recording is not None:
        folder = None if recording.folder is None else str(recording.folder.absolute())
        found["recording"] = {"fingerprint": recording.fingerprint, "path": folder, "labels": list(recording.labels)}
    return found


class _Scored:
    """The sums of one text under all runs, only of documents with a scored token; rows are computed from them."""

    def __init__(self, scored: Documents, controls: Mapping[str, int]) -> None:
        self.documents = np.flatnonzero(scored.tokens)
        self.tokens = scored.tokens[self.documents]
        self.plain = scored.totals[PLAIN][self.documents]
        self.sets: dict[str, NDArray[np.float64]] = {}
        self.controls: dict[str, NDArray[np.float64]] = {}  # (n_controls, n_documents)
        for name, number in controls.items():
            kept = [scored.totals[run_key(name, i)][self.documents] for i in range(1, number + 1)]
            self.sets[name] = scored.totals.get(run_key(name, 0), scored.totals[PLAIN])[self.documents]
            self.controls[name] = np.stack(kept) if kept else np.zeros((0, self.n))

    @property
    def n(self) -> int:
        return len(self.documents)

    def row(self, name: str, permutations: int, resamples: int, seed: int) -> dict[str, Any]:
        """The numbers of one set on this text; None where something can't be known."""
        clamped, others = self.sets[name], self.controls[name]
        plain_value, value = self._perplexity(self.plain), self._perplexity(clamped)
        low, high = self._interval(clamped, resamples, seed)
        effects = self.control_effects(name)
        expected = (others - self.plain).mean(0) if len(others) else np.zeros(self.n)
        return {
            "metric": "perplexity",
            "plain": plain_value,
            "clamped": value,
            "effect": value - plain_value,
            "low": low,
            "high": high,
            "control_mean": float(effects.mean()) if len(effects) else None,
            "control_sd": float(effects.std(ddof=1)) if len(effects) > 1 else None,
            "p": sign_flip(clamped - self.plain - expected, permutations=permutations, seed=seed),
            "p_holm": None,
            "p_controls": rank_p(value - plain_value, effects),
            "n_documents": self.n,
            "n_tokens": int(self.tokens.sum()),
        }

    def control_effects(self, name: str) -> NDArray[np.float64]:
        """Effect of each control, (n_controls,)."""
        return np.array([self._perplexity(sums) - self._perplexity(self.plain) for sums in self.controls[name]])

    def _perplexity(self, sums: NDArray[np.float64]) -> float:
        mean = float(sums.sum() / self.tokens.sum())
        return math.exp(mean) if mean < 709 else math.inf  # exp of more overflows a float64

    def _interval(self, clamped: NDArray[np.float64], resamples: int, seed: int) -> tuple[float | None, float | None]:
        if self.n < 2:
            return None, None
        sums = resampled_sums(np.stack([clamped, self.plain, self.tokens], 1), resamples=resamples, seed=seed)
        with np.errstate(over="ignore"):
            low, high = percentile_interval(np.exp(sums[:, 0] / sums[:, 2]) - np.exp(sums[:, 1] / sums[:, 2]))
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """Per-document sums and the effects of all controls, as plain data."""
        return {
            "documents": self.documents.tolist(),
            "tokens": self.tokens.tolist(),
            PLAIN: self.plain.tolist(),
            "clamped": {name: sums.tolist() for name, sums in self.sets.items()},
            "control_effects": {name: self.control_effects(name).tolist() for name in self.controls},
        }
