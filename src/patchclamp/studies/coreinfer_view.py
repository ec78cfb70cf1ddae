"""What the core-neuron study shows: tables, charts, verdicts computed from the numbers, the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.studies.study import Report, Table, judged

if TYPE_CHECKING:
    from patchclamp.find import Finding

ORDER = ("oracle", "predictor", "prompt", "prompt, by size", "labels", "k-means", "frequent", "random")
CURVE, OWN, LIKE, STABLE = "Quality by share of neurons", "Every token its own core", "Likeness of texts", "Stability"
SWITCH, ANSWERS, GROUPS = "A change of language", "Answers written", "Groups found without labels"
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class CoreInfer:
    """Everything that was measured. cores: the finding of the labels' cores. curve: rows of `core_quality`, all guides; own: of
    every token's own core, by alpha; switched: on texts that change their label. answers: a row per task, shots, guide and share.
    groups: k-means beside the labels. predictor: its bytes and recall.
    """

    cores: Finding
    groups: Mapping[str, Any]
    curve: Rows
    own: Rows
    switched: Rows
    answers: Rows
    shares: tuple[float, ...]
    token_share: float
    predictor: Mapping[str, Any]
    model: Mapping[str, Any]
    length: int
    shots: int
    bundled: bool


def report(study: CoreInfer) -> Report:
    """Everything of one run."""
    tables = [
        _curve_table(study),
        _own_table(study),
        _stable_table(study),
        _like_table(study),
        _groups_table(study),
        _answers_table(study),
        *([_switch_table(study)] if study.switched else []),
    ]
    return Report(
        tables=tables,
        charts=[
            (CURVE, curve_chart(study.curve, "added", "added loss, nats per token")),
            (CURVE, curve_chart(study.curve, "agreement", "share of tokens with the same next token")),
            (CURVE, steps_chart([row for row in study.curve if row["share"] == _share(study)])),
            (STABLE, stability_chart(study.cores.details["stability"])),
        ],
        verdict=_verdict(study),
        beside=_beside(study),
        differs=_differs(study),
        findings={"cores": study.cores},
    )


def _curve_table(study: CoreInfer) -> Table:
    rows = [_shown(row) for guide in ORDER for row in study.curve if row["guide"] == guide]
    one = study.curve[0]
    note = (
        f"{one['documents']} texts of {study.length} tokens, the first half read whole, {one['tokens']} tokens of the second "
        f"half scored. The whole model's perplexity is {one['plain_perplexity']:.2f}. added: nats per token above it, 95% "
        "interval over texts. KL: of this model's next token from the whole model's. read: bytes of the cut layers' MLP weights "
        "that are read. "
        "oracle and predictor choose for every token; the oracle computes all neurons first."
    )
    headings = {"guide": "guide", "share": "share", "perplexity": "perplexity", "more": "more", "added": "added", "low": "low",
                "high": "high", "divergence": "KL", "agreement": "same next token", "read": "read"}  # fmt: skip
    return Table(CURVE, rows, headings, note=note)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a curve as a table shows it."""
    plain = {key: value for key, value in row.items() if key not in ("steps", "losses")}
    return {**plain, "more": row["perplexity"] / row["plain_perplexity"] - 1}


def _own_table(study: CoreInfer) -> Table:
    rows = [_shown(row) for row in study.own]
    headings = {"by": "ranked by", "token_share": "alpha", "perplexity": "perplexity", "more": "more", "divergence": "KL",
                "agreement": "same next token"}  # fmt: skip
    note = "Every token keeps the alpha strongest of its positive neurons (paper, Eq. 1), or of all that are not 0 by their size."
    return Table(OWN, rows, headings, note=note)


def _stable_table(study: CoreInfer) -> Table:
    headings = {"label": "text", "prefix": "first tokens", "documents": "documents", "own": "own whole text", "low": "low",
                "high": "high", "others": "other texts of the label", "random": "random sets"}  # fmt: skip
    note = "Jaccard similarity of the core of a text's beginning with the core of the whole text; mean over layers."
    return Table(STABLE, study.cores.details["stability"], headings, note=note)


def _like_table(study: CoreInfer) -> Table:
    rows = [
        {**row, "where": "all layers" if row["layer"] is None else f"layer {row['layer']}"} for row in _documents(study)
    ]
    headings = {
        "where": "where",
        "within": "same label",
        "between": "other labels",
        "random": "random sets",
        "gap": "gap",
        "p": "p",
    }
    note = "Jaccard similarity of the cores of two texts; p: share of shuffles of their labels with at least this gap."
    return Table(LIKE, rows, headings, note=note)


def _groups_table(study: CoreInfer) -> Table:
    found = study.groups
    rows = [
        {"label": label, **dict(zip(found["groups"], counts, strict=True))}
        for label, counts in zip(found["labels"], found["table"], strict=True)
    ]
    note = (
        f"Texts of each label in each group of k-means over cores in layer {found['layer']}; adjusted Rand index "
        f"{found['rand']:.2f}."
    )
    return Table(GROUPS, rows, note=note)


def _answers_table(study: CoreInfer) -> Table:
    """One row per task, shots and share; a column per guide."""
    keys = dict.fromkeys((row["task"], row["shots"], row["share"]) for row in study.answers)
    rows = []
    for task, shots, share in keys:
        here = [row for row in study.answers if (row["task"], row["shots"], row["share"]) == (task, shots, share)]
        rows.append(
            {"task": task, "shots": shots, "items": here[0]["items"], "share": share, "whole": here[0]["whole"],
             **{row["guide"]: row["sparse"] for row in here}}
        )  # fmt: skip
    note = (
        "Share of answers written right, whole model and with so many neurons. The whole model writes the first token in all "
        "columns, so an answer of one token says nothing."
    )
    return Table(ANSWERS, rows, note=note)


def _switch_table(study: CoreInfer) -> Table:
    words, never = {"same": "the same", "other": "another"}, "never"
    rows = [
        {
            **_shown(row),
            "to": words[row["text"]],
            "every": f"every {row['refresh']} tokens" if row["refresh"] else never,
        }
        for row in study.switched
    ]
    headings = {"to": "second half's label", "every": "chosen anew", "perplexity": "perplexity"}
    headings |= {"plain_perplexity": "whole model", "added": "added", "low": "low", "high": "high"}
    headings |= {"agreement": "same next token"}
    note = "A document is read, then one of the same or of another label is scored, with 20% of the neurons."
    return Table(SWITCH, rows, headings, note=note)


def _documents(study: CoreInfer) -> Rows:
    found: Rows = study.cores.details["documents"]
    return found


def _row(study: CoreInfer, guide: str, share: float) -> Mapping[str, Any] | None:
    return next((row for row in study.curve if row["guide"] == guide and row["share"] == share), None)


def _share(study: CoreInfer) -> float:
    """The paper's 20% if it was measured, else the smallest share."""
    return 0.2 if 0.2 in study.shares else min(study.shares)


def better(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> bool | None:
    """Whether the first loses less than the second on the same texts: True or False where the 95% bootstrap interval of their
    difference over documents leaves out 0, None where it doesn't or one is missing."""
    if first is None or second is None:
        return None
    apart = np.array(second["losses"]) - np.array(first["losses"])
    low, high = percentile_interval(resampled_sums(apart[:, None], resamples=2000)[:, 0])
    return True if low > 0 else False if high < 0 else None


def _verdict(study: CoreInfer) -> list[str]:
    share = _share(study)
    rows = {guide: _row(study, guide, share) for guide in ORDER}
    added = {guide: f"{row['added']:+.2f}" for guide, row in rows.items() if row is not None}

    def pair(one: str, two: str) -> str:
        return f"{added.get(one, '?')} and {added.get(two, '?')} nats at {share:.0%}"

    stable = study.cores.details["stability"]
    longest = max((row["prefix"] for row in stable), default=0)
    last = [row for row in stable if row["prefix"] == longest]
    own, others, chance = ([row[key] for row in last if row[key] is not None] for key in ("own", "others", "random"))
    whole = next((row for row in _documents(study) if row["layer"] is None), None)
    found = [
        judged(
            "the prompt's core loses less than random neurons",
            better(rows["prompt"], rows["random"]),
            pair("prompt", "random"),
        ),
        judged(
            "the prompt's core loses less than the neurons frequent in all text",
            better(rows["prompt"], rows["frequent"]),
            pair("prompt", "frequent"),
        ),
        judged(
            "frequent neurons lose less than random ones",
            better(rows["frequent"], rows["random"]),
            pair("frequent", "random"),
        ),
        judged(
            "choosing for every token (oracle) loses less than a core of the text",
            better(rows["oracle"], rows["prompt"]),
            pair("oracle", "prompt"),
        ),
        judged(
            "ranking by size loses less than by positive values (gated neurons matter below 0)",
            better(rows["prompt, by size"], rows["prompt"]),
            pair("prompt, by size", "prompt"),
        ),
        _small(study),
        judged(
            f"the first {longest} tokens' core is nearer to the whole text's than other texts' cores are",
            None if not others else float(np.mean(own)) > float(np.mean(others)),
            f"{np.mean(own):.2f} and {np.mean(others):.2f}, random sets {np.mean(chance):.2f}" if others else "",
        ),
        judged(
            "texts of one label share more of their cores than texts of different labels",
            None if whole is None else whole["p"] < 0.05,
            "" if whole is None else f"{whole['within']:.2f} and {whole['between']:.2f}, p {whole['p']:.3f}",
        ),
        judged("k-means over cores finds the labels", study.groups["rand"] > 0.9, f"Rand {study.groups['rand']:.2f}"),
        _short_prompts(study, share),
    ]
    return [*found, *([_fresh(study)] if study.switched else [])]


def _small(study: CoreInfer) -> str:
    """The paper's claim of a few percent of perplexity, made for a model whose neurons are never negative."""
    near = min(study.shares, key=lambda share: abs(share - 0.25))
    row = _row(study, "prompt", near)
    more = None if row is None else row["perplexity"] / row["plain_perplexity"] - 1
    shown = "" if more is None else f"{more:+.1%} at {near:.0%}"
    return judged(
        "perplexity rises by at most 3% with a quarter of the neurons", None if more is None else more <= 0.03, shown
    )


def _short_prompts(study: CoreInfer, share: float) -> str:
    """Without shots a prompt is too short for a core of its own: the paper's case for clusters."""
    here = [row for row in study.answers if row["shots"] == 0 and row["share"] == share]
    mean = {
        guide: np.mean([row["sparse"] for row in here if row["guide"] == guide] or [np.nan])
        for guide in ("prompt", "k-means")
    }
    holds = None if np.isnan(list(mean.values())).any() else bool(mean["k-means"] > mean["prompt"])
    numbers = f"{mean['k-means']:.2f} and {mean['prompt']:.2f} of answers right at {share:.0%}"
    return judged("after short prompts clusters serve answers better than the prompt's core", holds, numbers)


def _fresh(study: CoreInfer) -> str:
    rows = {(row["text"], row["refresh"] is not None): row for row in study.switched}
    stale, fresh = rows["other", False], rows["other", True]
    numbers = f"{fresh['added']:+.2f} and {stale['added']:+.2f} nats"
    return judged(
        "after a change of language, choosing anew loses less than the old core", better(fresh, stale), numbers
    )


def _beside(study: CoreInfer) -> Table:
    def more(row: Mapping[str, Any] | None) -> str:
        return "–" if row is None else f"{row['perplexity'] / row['plain_perplexity'] - 1:+.1%}"

    near = min(study.shares, key=lambda share: abs(share - 0.25))
    alpha = next((row for row in study.own if row["by"] == "positive" and abs(row["token_share"] - 0.4) < 1e-9), None)
    sized = next((row for row in study.own if row["by"] == "abs" and abs(row["token_share"] - 0.4) < 1e-9), None)
    last = max((row["prefix"] for row in study.cores.details["stability"]), default=0)
    own = [row["own"] for row in study.cores.details["stability"] if row["prefix"] == last]
    few, many = (_mean_answers(study, shots) for shots in (study.shots, 0))
    rows = [
        {"what": "perplexity, every token's own core, alpha 0.4", "paper": "+2% (OPT-6.7B, C4)",
         "here": f"{more(alpha)}; by size {more(sized)}"},
        {"what": "perplexity, a text's core, beta 0.25", "paper": "+3% (OPT-6.7B, C4)",
         "here": f"{more(_row(study, 'prompt', near))} at {near:.0%}; by size {more(_row(study, 'prompt, by size', near))}"},
        {"what": "change of the core as a text grows", "paper": "3% after 256 + 8 tokens, 6% after + 64",
         "here": "–" if not own else f"Jaccard {np.mean(own):.2f} of the first {last} tokens with the whole text"},
        {"what": "answers with shots, whole model to prompt's core", 
         "paper": "SQuAD 52.1 to 53.2, TriviaQA 34.9 to 32.8 (OPT-6.7B, 6 shots)", "here": few},
        {"what": "answers without shots, whole model to prompt's core", 
         "paper": "TriviaQA 21.2 to 12.0 (stability-guided), 21.8 (clusters)", "here": many},
        {"what": "speed of decoding", "paper": "10.3 x (OPT-6.7B, weights moved over a bus)",
         "here": "see benchmarks/core_sparse.py"},
    ]  # fmt: skip
    return Table("Beside the paper's numbers", rows, {"what": "what", "paper": "paper", "here": "here"})


def _mean_answers(study: CoreInfer, shots: int) -> str:
    share = _share(study)
    here = [row for row in study.answers if row["shots"] == shots and row["share"] == share]
    names = ("prompt", "k-means", "prompt, by size")
    mine = {guide: [row["sparse"] for row in here if row["guide"] == guide] for guide in names}
    if not mine["prompt"]:
        return "–"
    whole = np.mean([row["whole"] for row in here if row["guide"] == "prompt"])
    right = [f"{100 * float(np.mean(values)):.1f}" for values in mine.values()]
    return f"{100 * whole:.1f} to {right[0]}; clusters {right[1]}; by size {right[2]}"


def _differs(study: CoreInfer) -> list[str]:
    found = [
        f"model: {study.model['name']} ({study.model['type']}), not OPT or Llama of 6.7 billion parameters and more",
        f"texts of {study.length} tokens, prompts of {study.length // 2}; the paper's prompts are longer",
        "a text's first half chooses, its second half is scored: the paper does not say whether the scored text chose",
        "every token has its own core size, ties are defined, one site is used throughout; no token is read twice",
    ]
    if study.bundled:
        found.append("text: the demo's own in six languages, not C4; labels are languages, not topics")
    return found


def curve_chart(rows: Rows, value: str, title: str) -> Any:
    """Altair: a line per guide against the share of neurons kept."""
    import altair as alt

    values = [{key: row[key] for key in ("guide", "share", value)} for row in rows]
    return (
        alt.Chart(alt.Data(values=values), width=560, height=300)
        .mark_line(point=True)
        .encode(
            x=alt.X("share:Q", title="share of neurons kept"),
            y=alt.Y(f"{value}:Q", title=title),
            color=alt.Color("guide:N", title="", sort=list(ORDER)),
        )
    )


def steps_chart(rows: Rows, window: int = 8) -> Any:
    """Altair: divergence from the whole model by how far a token is from the prompt, means over `window` tokens."""
    import altair as alt

    values = [
        {"guide": row["guide"], "after": at + window / 2, "divergence": float(np.mean(row["steps"][at : at + window]))}
        for row in rows
        for at in range(0, len(row["steps"]), window)
    ]
    return (
        alt.Chart(alt.Data(values=values), width=560, height=260)
        .mark_line(point=True)
        .encode(
            x=alt.X("after:Q", title="tokens after the prompt"),
            y=alt.Y("divergence:Q", title=f"KL divergence, nats, at {rows[0]['share']:.0%}"),
            color=alt.Color("guide:N", title="", sort=list(ORDER)),
        )
    )


def stability_chart(rows: Rows) -> Any:
    """Altair: likeness of a beginning's core with the whole text's, and with other texts' cores."""
    import altair as alt

    names = {"own": "own whole text", "others": "other texts of the label", "random": "random sets"}
    values = [
        {"prefix": row["prefix"], "label": row["label"], "with": name, "jaccard": row[key]}
        for row in rows
        for key, name in names.items()
        if row[key] is not None
    ]
    return (
        alt.Chart(alt.Data(values=values), width=560, height=280)
        .mark_line(point=True)
        .encode(
            x=alt.X("prefix:Q", title="first tokens of the text", scale=alt.Scale(type="log", base=2)),
            y=alt.Y("mean(jaccard):Q", title="Jaccard similarity of cores"),
            color=alt.Color("with:N", title="", sort=list(names.values())),
        )
    )
