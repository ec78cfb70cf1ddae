"""The language-neuron study behind the door that all studies share: `pc.study("language-neurons", model, out=...)`."""

from __future__ import annotations

from typing import Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data import Corpus, demo_text
from patchclamp.studies import language_neurons_view as view
from patchclamp.studies.language_neurons import LanguageNeurons, language_neurons
from patchclamp.studies.study import Report, Run, Table, judged, studies

ALPHA = 0.05
NAME = "language-neurons"
# Zhang et al. 2025, MistralMathOctopus-7B on MGSM: neurons of English, and the mean over the nine other languages
PAPER = {"English specific": 46, "English related": 603, "others' mean specific": 613, "others' mean related": 2006}


@studies.add(NAME)
def language_neurons_study(
    run: Run,
    *,
    text: Corpus | None = None,
    measure: Corpus | None = None,
    rate: float = 0.1,
    bar: float = 0.95,
    controls: int = 10,
    documents: int = 24,
) -> Report:
    """Language neurons: find the neurons of each language, clamp them, measure every language (arXiv 2505.21505).

    text: labelled text to find neurons with; the demo's own by default. measure: text of the same labels that the finder
    does not see; needed with text. rate: share of neurons to select; the paper's 0.01 would be 38 of the demo model's 3,840.
    bar: share of firing probabilities below the activity bar. controls: matched-random sets to compare with. documents: of
    each language to measure on.

    Zhang et al. 2025 count a neuron as one language's (specific) or several languages' (related), and show that clamping
    them hurts these languages most. The atlas of the run is kept too.
    """
    if (text is None) != (measure is None):
        raise InputError("give both text= and measure= (--text and --measure), or neither for the demo's text")
    find_on = text or demo_text(split="find")
    result = language_neurons(
        run.model,
        find_on=find_on,
        measure_on=(measure or demo_text(split="measure")).limited(max_documents=documents),
        out=run.out,
        name=NAME,
        rate=rate,
        bar=bar,
        controls=controls,
        seed=run.seed,
        resume=True,
        say=run.say,
    )
    return _report(result)


def _report(result: LanguageNeurons) -> Report:
    effects = result.effects
    sets = Table(
        "Which neurons carry which label",
        view.set_rows(result),
        {"label": "label", "units": "neurons", "specific": "specific", "related": "related", "by_chance": "by chance",
         "layers": "per layer"},
        note=view.null_sentence(result),
    )  # fmt: skip
    matrix = Table(
        "Perplexity with a label's neurons clamped to 0, as a multiple of the plain one",
        [
            {"clamped": name, **{text: _multiple(effects.row(name, text)) for text in effects.texts}}
            for name in effects.sets
        ],
    )
    own = Table(
        "Each label's neurons on its own text",
        view.own_rows(result),
        {"set": "label", "plain": "plain", "clamped": "clamped", "effect": "effect", "interval": "95% interval",
         "random": "random sets", "p_holm": "p (Holm)"},
        note="Effect: clamped minus plain perplexity, on documents that the finder did not see.",
    )  # fmt: skip
    every = Table("Every effect", effects.rows, view.ALL_COLUMNS)
    return Report(
        tables=[sets, matrix, own, every],
        charts=[
            (sets.title, view.layer_chart(result)),
            (sets.title, result.finding.plot()),
            (matrix.title, view.matrix_chart(result)),
        ],
        verdict=_verdict(result),
        beside=_beside(result),
        differs=_differs(result),
        folded=[every.title],
        commands=[line.strip() for line in view.next_commands(result)],
    )


def _multiple(row: dict[str, Any]) -> float:
    return round(float(row["clamped"] / row["plain"]), 3)


def _verdict(result: LanguageNeurons) -> list[str]:
    """What the paper claims, tested on the numbers of this run."""
    effects, labels = result.effects, result.finding.labels
    own = [effects.row(label, label) for label in labels]
    hurt = [row for row in own if row["effect"] > 0 and row["p_holm"] < ALPHA]
    beyond = [row for row in own if row["control_mean"] is None or row["effect"] > row["control_mean"]]
    counts, null = result.finding.class_counts(), result.finding.null.get("classes", {})
    named = counts["specific"] + counts["related"]
    chance = sum(null.get(kind, {}).get("mean", 0.0) for kind in ("specific", "related"))
    dominance = effects.dominance() if len(labels) > 1 else None
    return [
        judged("more neurons serve some languages than shuffled labels name", named > chance, f"{named} against {chance:.1f}"),
        judged(
            f"clamping a language's neurons hurts that language (Holm-corrected p < {ALPHA})",
            len(hurt) == len(own), f"{len(hurt)} of {len(own)} languages",
        ),
        judged(
            "it hurts more than matched random sets do", len(beyond) == len(own), f"{len(beyond)} of {len(own)} languages"
        ),
        judged(
            "each language is hurt most by its own neurons, and they hurt no other more",
            None if dominance is None else dominance["dominant"],
            "" if dominance is None else f"{dominance['share']:.0%} of the comparisons",
        ),
    ]  # fmt: skip


def _beside(result: LanguageNeurons) -> Table | None:
    """English and the mean of the other languages, as the paper counts them; None without English."""
    rows = {row["label"]: row for row in view.set_rows(result)}
    english, others = rows.get("en"), [row for label, row in rows.items() if label != "en"]
    if english is None or not others:
        return None
    ours = [english["specific"], english["related"]]
    ours += [round(float(np.mean([row[kind] for row in others])), 1) for kind in ("specific", "related")]
    total = result.finding.layout.total
    table = [
        {"what": what, "paper": paper, "paper_share": paper / 458_752, "ours": our, "our_share": our / total}
        for (what, paper), our in zip(PAPER.items(), ours, strict=True)
    ]
    headings = {"what": "neurons", "paper": "paper", "paper_share": "of all", "ours": "ours", "our_share": "of all"}
    return Table("Beside the paper", table, headings)


def _differs(result: LanguageNeurons) -> list[str]:
    rate = result.finding.parameters.get("rate")
    return [
        f"model: {result.recording.model['name']}, the paper's is MistralMathOctopus-7B (458,752 neurons)",
        f"text: {len(result.finding.labels)} labels of plain text, the paper's are the problems of MGSM in 10 languages",
        f"{rate:.0%} of the neurons are selected, the paper selects 1%",
        "effects are changes of perplexity; the paper's are changes of accuracy",
    ]
