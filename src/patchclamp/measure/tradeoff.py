"""Less of a concept against fluency: concept rate and perplexity of several interventions, and one number for both (TPH).

Shaik et al. 2025 (arXiv 2509.16660): TPH = 2 T Q / (T + Q), T the relative fall of the concept rate, Q = 1 / (1 + |P|), P
the relative change of perplexity (a fall counts like a rise). Perplexity is the mean over sentences of
exp(mean negative log-likelihood), as in the paper.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import read_json, write_json
from patchclamp.core.provenance import provenance
from patchclamp.data.corpora import Corpus
from patchclamp.data.tasks import Task
from patchclamp.intervene.kinds import Change, Interventions
from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.measure.concept_rate import AVERAGE, ONCE, concept_rate, task_of
from patchclamp.measure.concepts import Judge, Words
from patchclamp.measure.effect_subjects import kept_as_data
from patchclamp.measure.measurement import Measurement
from patchclamp.measure.permutation import sign_flip
from patchclamp.measure.perplexity import perplexity
from patchclamp.measure.tables import html_table, rich_table, text_table

if TYPE_CHECKING:
    from rich.table import Table

    from patchclamp.models.load import LanguageModel

FORMAT = "patchclamp.tradeoff/1"
PLAIN = "none"
COLUMNS = ("name", "units", "rate", "low", "high", "once", "perplexity", "change", "tph", "tph_low", "tph_high")


def tph(reduction: float, change: float) -> float:
    """Harmonic mean of a concept's relative reduction T and Q = 1 / (1 + |P|), in [0, 1].

    reduction: T, 1 when nothing of the concept is left; 0 or below gives 0 (the paper has no such case). change: P,
    relative change of perplexity; infinite or NaN gives 0.
    """
    if math.isnan(reduction) or math.isnan(change) or reduction <= 0 or math.isinf(change):
        return 0.0
    quality = 1 / (1 + abs(change))
    return 2 * reduction * quality / (reduction + quality)


def sentence_perplexity(found: Measurement) -> float:
    """Mean over documents of exp(mean negative log-likelihood of the document); documents without a scored token left out."""
    kept = found.weights > 0
    with np.errstate(over="ignore"):
        return float(np.exp(found.totals[kept] / found.weights[kept]).mean()) if kept.any() else math.nan


@dataclass(frozen=True, eq=False)
class Tradeoff:
    """Concept rate, perplexity and TPH of a model under several interventions, the plain model first.

    rows: one per intervention: name, family (what stands before "/" in the name), units, rate with interval, once (share
    of prompts with any flagged sample), perplexity, reduction (T), change (P), tph with interval, p (paired sign-flip test
    of the rate against the plain model). Intervals: 95% bootstrap over prompts and documents. rates: name -> (n prompts,)
    share flagged. losses: name -> (n documents,) mean negative log-likelihood, nats. changes: what was applied, while it is in
    memory; `save` keeps it as data, so that the file can be run again.
    """

    rows: list[dict[str, Any]]
    rates: dict[str, NDArray[np.float64]]
    losses: dict[str, NDArray[np.float64]]
    written: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Interventions] = field(default_factory=dict)

    def __getitem__(self, name: str) -> dict[str, Any]:
        for row in self.rows:
            if row["name"] == name:
                return row
        raise InputError(f"no intervention is called {name!r}; there are {', '.join(row['name'] for row in self.rows)}")

    def best(self, family: str) -> dict[str, Any]:
        """The row of highest TPH of a family; InputError for an unknown one."""
        mine = [row for row in self.rows if row["family"] == family]
        if not mine:
            raise InputError(f"no family is called {family!r}; there are {', '.join(self.families)}")
        return max(mine, key=lambda row: row["tph"])

    @property
    def families(self) -> tuple[str, ...]:
        """The families beside the plain model, in order."""
        return tuple(dict.fromkeys(row["family"] for row in self.rows if row["name"] != PLAIN))

    def chart(self) -> Any:
        """The curve of every family: concept rate over relative change of perplexity (altair chart).

        Names that end in #NUMBER are draws of one setting: dots without a line.
        """
        import altair as alt

        rows = [
            {**row, "loss": _log_ratio(row["change"])} for row in self.rows if _log_ratio(row["change"]) is not None
        ]
        plain = [{**row, "family": family} for row in rows if row["name"] == PLAIN for family in self.families]
        points = [row for row in rows if row["name"] != PLAIN] + plain
        base = alt.Chart(alt.Data(values=points), width=460, height=280)
        x = alt.X("loss:Q", title="perplexity, in doublings against the plain model")
        y = alt.Y("rate:Q", title="concept rate", scale=alt.Scale(domainMin=0))
        color = alt.Color("family:N", title=None)
        tooltip = [alt.Tooltip(f"{key}:{kind}") for key, kind in _TOOLTIP.items()]
        dots = base.mark_point(filled=True, size=60).encode(x=x, y=y, color=color, tooltip=tooltip)
        lines = base.transform_filter("indexof(datum.name, '#') < 0").mark_line(opacity=0.5)
        return dots + lines.encode(x=x, y=y, color=color)

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "rows": self.rows,
            "rates": self.rates,
            "losses": self.losses,
            "written": self.written,
            "provenance": self.provenance,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.tradeoff/1` JSON, whole or not at all."""
        data = self.to_dict()
        if self.changes:
            kept = {name: kept_as_data(change) for name, change in self.changes.items()}
            inputs = {**self.provenance["inputs"], "interventions": kept}
            data["provenance"] = {**self.provenance, "inputs": inputs}
        return write_json(path, data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tradeoff:
        """Read what `save` wrote; DamagedError for anything else."""
        return cls.from_dict(read_json(path, format=FORMAT), str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "this") -> Tradeoff:
        """From plain data; DamagedError for anything but what `to_dict` made."""
        try:
            rates, losses = (
                {name: np.array([math.inf if v is None else v for v in values]) for name, values in data[key].items()}
                for key in ("rates", "losses")
            )
            rows = [{**row, **{k: _number(row[k]) for k in ("perplexity", "change")}} for row in data["rows"]]
            return cls(rows, rates, losses, dict(data["written"]), dict(data["provenance"]))
        except (KeyError, TypeError, AttributeError) as problem:
            raise DamagedError(f"{where} is no complete {FORMAT} data: {problem!r}") from problem

    def __rich__(self) -> Table:
        return rich_table("Concept and fluency", self.rows, COLUMNS)

    def __repr__(self) -> str:
        return text_table("Concept and fluency", self.rows, COLUMNS)

    def _repr_html_(self) -> str:
        return html_table("Concept and fluency", self.rows, COLUMNS)


_TOOLTIP = {"name": "N", "rate": "Q", "perplexity": "Q", "tph": "Q"}


def tradeoff(
    model: LanguageModel,
    interventions: Mapping[str, Change | Interventions],
    prompts: Task | Sequence[str],
    judge: Judge,
    text: Corpus,
    *,
    samples: int = 25,
    max_new_tokens: int = 20,
    top_p: float = 0.95,
    stop: Sequence[str] = (),
    threshold: float | None = 0.5,
    max_length: int | None = 128,
    resamples: int = 1000,
    seed: int = 0,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Tradeoff:
    """Concept rate and perplexity of the plain model and under every intervention, with TPH and intervals.

    interventions: name -> intervention; names "FAMILY/SETTING" make a curve of each family. Put controls among them: random
    directions or units change fluency too. prompts, judge, samples, max_new_tokens, top_p, stop, threshold: see
    `concept_rate`. text: whose perplexity says what fluency is left (all labels together); documents are cut at max_length.
    resamples: of the bootstrap. InputError for interventions of another model, and for a text without a scored token.
    """
    task = task_of(prompts)
    runs = {name: Interventions.of(what) for name, what in interventions.items()}
    if PLAIN in runs:
        raise InputError(f"{PLAIN!r} is the plain model's name here; call the intervention something else")
    for what in runs.values():
        what.check_model(model)
    how: dict[str, Any] = {
        "samples": samples, "max_new_tokens": max_new_tokens, "top_p": top_p, "stop": tuple(stop),
        "threshold": threshold, "seed": seed,
    }  # fmt: skip
    cut = max_length if max_length is None else min(max_length, model.max_length)
    rates, once, losses, written = {}, {}, {}, {}
    for name, run in {PLAIN: None, **runs}.items():
        with nullcontext() if run is None else run.applied(model):
            said = concept_rate(model, task, judge, batch_tokens=batch_tokens, quiet=quiet, **how)
            read = perplexity(model, text, max_length=cut, batch_tokens=batch_tokens, quiet=quiet)
        rates[name], once[name] = said[AVERAGE].totals, said[ONCE].value
        written[name] = [{"prompt": one["prompt"], **one["written"][0]} for one in said[AVERAGE].items[:KEPT_PROMPTS]]
        losses[name] = np.concatenate(
            [one.totals[one.weights > 0] / one.weights[one.weights > 0] for one in read.values()]
        )
    units = {name: run.n_units for name, run in runs.items()}
    rows = [_row(name, rates, once, losses, units.get(name, 0), resamples, seed) for name in rates]
    inputs = {
        "model": dict(model.identity),
        "prompts": plain_prompts(prompts),
        "text": text.identity,
        "interventions": {name: run.describe() for name, run in runs.items()},
    }
    arguments = {
        **how, "judge": plain_judge(judge), "max_length": cut, "resamples": resamples, "batch_tokens": batch_tokens,
    }  # fmt: skip
    source = provenance("measure.tradeoff", arguments=arguments, inputs=inputs, seed=seed)
    return Tradeoff(rows, rates, losses, written, source, runs)


def plain_judge(judge: Judge | None) -> Any:
    """A judge for provenance: {"words": [...]} of `Words`, which can be made again; of any other its name."""
    if judge is None or type(judge) is Words:
        return None if judge is None else {"words": list(judge.words)}
    return getattr(judge, "__qualname__", repr(judge))


def plain_prompts(prompts: Task | Sequence[str]) -> dict[str, Any]:
    """Prompts for provenance: {"task": identity}, or {"texts": [...]} of a list of texts."""
    return {"task": prompts.identity} if isinstance(prompts, Task) else {"texts": list(prompts)}


KEPT_PROMPTS = 8


def _row(
    name: str,
    rates: Mapping[str, NDArray[np.float64]],
    once: Mapping[str, float],
    losses: Mapping[str, NDArray[np.float64]],
    units: int,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Everything about one intervention."""
    with np.errstate(over="ignore"):
        surprises, plain = np.exp(losses[name]), np.exp(losses[PLAIN])
    n, m = len(rates[name]), len(plain)
    drawn, drawn_plain = _means(rates[name], rates[PLAIN], resamples, seed)  # the same draws for every row
    low, high = percentile_interval(drawn) if n > 1 else (None, None)
    reduction = _relative(rates[PLAIN].mean(), rates[name].mean())
    change = _relative(surprises.mean(), plain.mean(), against=plain.mean())
    row: dict[str, Any] = {
        "name": name, "family": name.partition("/")[0], "units": units, "rate": float(rates[name].mean()), "low": low,
        "high": high, "once": once[name], "perplexity": float(surprises.mean()), "reduction": reduction, "change": change,
        "tph": tph(reduction, change), "tph_low": None, "tph_high": None, "p": None,
    }  # fmt: skip
    if name == PLAIN:
        return row | {"tph": None}
    if n > 1 and m > 1:
        read, read_plain = _means(surprises, plain, resamples, seed + 1)
        falls = [_relative(a, b) for a, b in zip(drawn_plain, drawn, strict=True)]
        rises = [_relative(a, b, against=b) for a, b in zip(read, read_plain, strict=True)]
        several = np.array([tph(fall, rise) for fall, rise in zip(falls, rises, strict=True)])
        row["tph_low"], row["tph_high"] = percentile_interval(several)
        row["p"] = sign_flip(rates[name] - rates[PLAIN], seed=seed)
    return row


def _means(
    one: NDArray[np.float64], other: NDArray[np.float64], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of two paired columns over resampled items, (resamples,) each; NaN where a value is infinite."""
    with np.errstate(invalid="ignore"):
        sums = resampled_sums(np.stack([one, other], 1), resamples=resamples, seed=seed) / len(one)
    return sums[:, 0], sums[:, 1]


def _relative(a: float, b: float, *, against: float | None = None) -> float:
    """(a - b) / a, or over `against`; 0 where that is 0."""
    whole = a if against is None else against
    return float((a - b) / whole) if whole else 0.0


def _log_ratio(change: float | None) -> float | None:
    """log2 of the ratio of perplexities; None where it is infinite."""
    if change is None or not math.isfinite(change) or change <= -1:
        return None
    return math.log2(1 + change)


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)
