"""How strong should steering be? Text, tasks and what is written at several strengths, beside equally long random directions.

`steering_sweep(model, direction, [-1, -0.5, 0.5, 1], on=text, prompts=[...], judge=is_german)` gives a table and a chart.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import read_json, write_json
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.data.corpora import Corpus
from patchclamp.data.tasks import Task
from patchclamp.intervene.kinds import Interventions
from patchclamp.intervene.steer import Steered, steering, strengthened
from patchclamp.measure.concept_rate import AVERAGE, METRIC, concept_rate, task_of
from patchclamp.measure.concepts import Judge
from patchclamp.measure.effect_subjects import kept_as_data
from patchclamp.measure.effects import effect
from patchclamp.measure.permutation import rank_p
from patchclamp.measure.tables import html_table, rich_table, text_table
from patchclamp.measure.tradeoff import plain_judge, plain_prompts

if TYPE_CHECKING:
    from rich.table import Table

    from patchclamp.models.load import LanguageModel

FORMAT = "patchclamp.steering/1"
WRITTEN = "written"  # what stands for the text of rows about generations
COLUMNS = (
    "strength",
    "text",
    "metric",
    "plain",
    "steered",
    "effect",
    "low",
    "high",
    "control_mean",
    "control_sd",
    "p_controls",
)


@dataclass(frozen=True, eq=False)
class SteeringSweep:
    """What steering does at each strength.

    rows: one dict per strength and text, task or (text "written") judged continuations, with the keys COLUMNS and "p" (paired
    sign-flip test, None for written rows without controls). effect: steered - plain with a 95% bootstrap interval. control_*:
    effects of random directions of the same length; p_controls = (k + 1) / (controls + 1). written: strength -> a few
    continuations with their prompts and scores. steering: what was applied at strength 1, as data.
    """

    rows: list[dict[str, Any]]
    written: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def strengths(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(row["strength"] for row in self.rows))

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the texts and tasks, and "written"."""
        return tuple(dict.fromkeys(row["text"] for row in self.rows))

    def row(self, strength: float, text: str) -> dict[str, Any]:
        """The row of one strength and text; InputError if there is none."""
        for row in self.rows:
            if (row["strength"], row["text"]) == (strength, text):
                return row
        raise InputError(
            f"no row of strength {strength} on {text!r}; strengths {self.strengths}, texts {', '.join(self.texts)}"
        )

    def chart(self) -> Any:
        """Value over strength, one panel per text, beside the mean and range of random directions (altair chart)."""
        import altair as alt

        panels = []
        for text in self.texts:
            rows = [row for row in self.rows if row["text"] == text]
            metric = rows[0]["metric"]
            base = alt.Chart(alt.Data(values=_points(rows)), width=260, height=180, title=text)
            scale = alt.Scale(type="log" if metric == "perplexity" else "linear", zero=False)
            encoded = {"x": alt.X("strength:Q"), "y": alt.Y("value:Q", title=metric, scale=scale)}
            panels.append(base.mark_line(point=True).encode(**encoded, color=alt.Color("kind:N", title=None)))
        return alt.concat(*panels, columns=3)

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "rows": self.rows, "written": self.written, "provenance": self.provenance}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.steering/1` JSON, whole or not at all."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SteeringSweep:
        """Read what `save` wrote; DamagedError for anything else."""
        data = read_json(path, format=FORMAT)
        try:
            return cls(list(data["rows"]), dict(data["written"]), dict(data["provenance"]))
        except (KeyError, TypeError, ValueError) as problem:
            raise DamagedError(f"{path} is no complete {FORMAT} file: {problem!r}") from problem

    def __rich__(self) -> Table:
        return rich_table("Steering", self.rows, COLUMNS)

    def __repr__(self) -> str:
        return text_table("Steering", self.rows, COLUMNS)

    def _repr_html_(self) -> str:
        return html_table("Steering", self.rows, COLUMNS)


def steering_sweep(
    model: LanguageModel,
    direction: Steered | Interventions,
    strengths: Sequence[float] = (-1.0, -0.5, 0.5, 1.0),
    *,
    on: Corpus | Task | Mapping[str, Task] | None = None,
    how: str | None = None,
    prompts: Task | Sequence[str] | None = None,
    judge: Judge | None = None,
    strength_in: Literal["norm", "own"] = "norm",
    scope: str = "all",
    controls: int = 5,
    samples: int = 4,
    max_new_tokens: int = 20,
    text: Corpus | None = None,
    permutations: int = 9999,
    resamples: int = 1000,
    batch_tokens: int = 4096,
    seed: int = 0,
    quiet: bool = False,
) -> SteeringSweep:
    """Steer at several strengths and measure perplexity, tasks and judged continuations, with random directions as controls.

    direction, strength_in, scope, text: as in `steer`; or `Interventions` whose additions get each strength in turn. strengths:
    different numbers but 0, which is the plain model. on: labelled text or tasks, how: their metric, see `patchclamp.effect`.
    prompts, judge: what is written after each prompt is judged (`samples` continuations of max_new_tokens), see
    `measure.concept_rate`; the share flagged is the row "written". controls: random directions of the same length for every
    strength, seeds seed, seed + 1, ... InputError without on= and prompts=, for prompts without a judge, and for strengths
    that are 0, not finite or given twice.
    """
    _check(strengths, on, prompts, judge)
    if isinstance(direction, Interventions):
        direction.check_model(model)
        base = direction
    else:
        base = steering(model, direction, 1.0, strength_in=strength_in, scope=scope, text=text)
    runs = {f"{strength:g}": strengthened(base, float(strength)) for strength in strengths}
    at = dict(zip(runs, map(float, strengths), strict=True))
    rows: list[dict[str, Any]] = []
    if on is not None:
        found = effect(
            model, runs, on=on, how=how, controls=controls, permutations=permutations, resamples=resamples,
            batch_tokens=batch_tokens, seed=seed, quiet=quiet,
        )  # fmt: skip
        rows += [_row(at[row["set"]], row) for row in found.rows]
    written: dict[str, list[dict[str, Any]]] = {}
    if prompts is not None and judge is not None:
        drawn: dict[str, Any] = {
            "samples": samples, "max_new_tokens": max_new_tokens, "batch_tokens": batch_tokens, "seed": seed, "quiet": True,
        }  # fmt: skip
        more, written = _written(model, runs, at, prompts, judge, controls, seed, resamples, permutations, drawn, quiet)
        rows += more
    inputs: dict[str, Any] = {
        "model": dict(model.identity), "steering": {"described": base.describe(), **kept_as_data(base)}, **_identities(on),
    }  # fmt: skip
    if prompts is not None:
        inputs["prompts"] = plain_prompts(prompts)
    arguments = {
        "strengths": list(at.values()), "strength_in": strength_in, "scope": scope, "controls": controls, "how": how,
        "samples": samples, "max_new_tokens": max_new_tokens, "permutations": permutations, "resamples": resamples,
        "batch_tokens": batch_tokens, "judge": plain_judge(judge),
    }  # fmt: skip
    return SteeringSweep(
        rows, written, provenance("measure.steering_sweep", arguments=arguments, inputs=inputs, seed=seed)
    )


def _identities(on: Corpus | Task | Mapping[str, Task] | None) -> dict[str, Any]:
    """The text or the tasks that were measured, for provenance."""
    if on is None or isinstance(on, Corpus):
        return {} if on is None else {"text": on.identity}
    tasks = {on.name: on} if isinstance(on, Task) else on
    return {"tasks": {name: task.identity for name, task in tasks.items()}}


def _written(
    model: LanguageModel, runs: Mapping[str, Interventions], at: Mapping[str, float], prompts: Task | Sequence[str],
    judge: Judge, controls: int, seed: int, resamples: int, permutations: int, drawn: Mapping[str, Any], quiet: bool,
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:  # fmt: skip
    """Rows about judged continuations, and some of these, by strength ("0": the plain model)."""
    task = task_of(prompts)
    rows = []
    with progress("steered texts", 1 + len(runs) * (1 + controls), unit="runs", quiet=quiet) as advance:
        plain = concept_rate(model, task, judge, **drawn)[AVERAGE]
        advance(1)
        written = {"0": _texts(plain)}
        for name, run in runs.items():
            with run.applied(model):
                steered = concept_rate(model, task, judge, **drawn)[AVERAGE]
            advance(1)
            others = []
            for number in range(controls):
                with run.matched_random(seed + number).applied(model):
                    others.append(concept_rate(model, task, judge, **drawn)[AVERAGE].value - plain.value)
                advance(1)
            gap = steered - plain
            low, high = gap.interval(resamples=resamples, seed=seed)
            rows.append(
                {"strength": at[name], "text": WRITTEN, "metric": METRIC, "plain": plain.value, "steered": steered.value,
                 "effect": gap.value, "low": _known(low), "high": _known(high),
                 "control_mean": float(np.mean(others)) if others else None,
                 "control_sd": float(np.std(others, ddof=1)) if len(others) > 1 else None,
                 "p_controls": rank_p(gap.value, np.array(others)), "p": gap.p(permutations=permutations, seed=seed)}
            )  # fmt: skip
            written[name] = _texts(steered)
    return rows, written


def _texts(found: Any) -> list[dict[str, Any]]:
    return [{"prompt": one["prompt"], **one["written"][0]} for one in found.items]


def _row(strength: float, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of effects in the words of this table."""
    same = ("text", "metric", "plain", "effect", "low", "high", "control_mean", "control_sd", "p_controls", "p")
    return {"strength": strength, "steered": row["clamped"], **{key: row[key] for key in same}}


def _points(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of one panel: the direction's, and the mean of random ones; both pass the plain model at strength 0."""
    found = []
    for kind, values in (
        ("direction", [row["steered"] for row in rows]),
        (
            "random directions",
            [None if row["control_mean"] is None else row["plain"] + row["control_mean"] for row in rows],
        ),
    ):
        here = [
            {"strength": row["strength"], "value": value, "kind": kind}
            for row, value in zip(rows, values, strict=True)
            if value is not None and math.isfinite(value)
        ]
        found += [*here, {"strength": 0.0, "value": rows[0]["plain"], "kind": kind}] if here else []
    return found


def _check(strengths: Sequence[float], on: Any, prompts: Any, judge: Any) -> None:
    if on is None and prompts is None:
        raise InputError("give on= (text or tasks), or prompts= with a judge=, to say what is measured")
    if (prompts is None) != (judge is None):
        raise InputError(
            "prompts= and judge= belong together: a judge says of a continuation whether it shows the concept"
        )
    names = [f"{strength:g}" for strength in strengths]
    if not names or len(set(names)) < len(names) or not all(math.isfinite(s) and s for s in strengths):
        raise InputError(f"strengths={list(strengths)}; give different finite numbers but 0, which is the plain model")


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
