"""Units that follow sentences, phrases or both while the model reads a rhythm of equal sentences (frequency tagging).

Paper: An et al. 2025, arXiv 2510.13255 (HFTP). The steps lie in files of their own: syntax_streams (what is read),
syntax_tokens, syntax_sums (one streaming pass), syntax_spectra (amplitudes and chance), syntax_select (which units).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.files import sha256_text, to_json
from patchclamp.core.provenance import provenance
from patchclamp.data.corpora import Corpus
from patchclamp.find import syntax_select as choose
from patchclamp.find.finding import Finding, finders
from patchclamp.find.syntax_notes import counts_of, details_of, floor_of, notes_of
from patchclamp.find.syntax_select import KINDS, chosen_by, dice, dice_by_chance
from patchclamp.find.syntax_spectra import Rate, asymptotic_null, basis, paired_test, permutation_null
from patchclamp.find.syntax_streams import Sentences, streams
from patchclamp.find.syntax_sums import Plan, Sums, tag_sums
from patchclamp.find.syntax_tagged import Tagged

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

__all__ = ["Settings", "Tagged", "chosen_by", "dice", "dice_by_chance", "syntax", "tagged", "tags"]

METHODS = ("fdr", "reference")
OVER = ("words", "groups")
NULLS = ("permutation", "asymptotic")
WORD_PERMUTATIONS = 9999


@dataclass(frozen=True)
class Settings:
    """How streams are made and read; the keywords of `syntax` of the same names."""

    n_streams: int = 100
    groups: int = 10
    per_stream: int | None = None
    phrase_units: tuple[int, ...] | None = None
    skip_first_sentences: int = 1
    control_shuffle_order: bool = True
    units: str = "auto"
    nearest: bool = False
    special: bool = False
    site: str = "mlp"
    permutations: int = 1000
    null: str = "permutation"
    seed: int = 0
    batch_tokens: int = 4096


@finders.add("syntax")
def syntax(
    model: LanguageModel,
    text: Corpus | Mapping[str, Iterable[Any]],
    *,
    method: str = "fdr",
    over: str = "words",
    q: float = 0.05,
    bar: float = 2.0,
    n_streams: int = 100,
    groups: int = 10,
    per_stream: int | None = None,
    phrase_units: list[int] | None = None,
    skip_first_sentences: int = 1,
    control_shuffle_order: bool = True,
    units: str = "auto",
    nearest: bool = False,
    special: bool = False,
    site: str = "mlp",
    permutations: int = 1000,
    null: str = "permutation",
    floor: bool = True,
    seed: int = 0,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Finding:
    """Find the units that follow sentences, phrases or both (HFTP; An et al. 2025, arXiv 2510.13255).

    The model reads `n_streams` shuffled orders of the sentences, and as many controls whose sentences have their units
    permuted. A unit's series is its mean activation on each unit of text, at a nominal 4 units per second; SI and PI are
    its amplitude at the sentence and the phrase rate in the experiment less that in the control. Every label gets three
    disjoint sets: LABEL:sentence, LABEL:phrase and LABEL:shared.

    text: label -> sentences of equally many units (a corpus with a sentence per document, strings, lists of units, or
    generated items); a unit is a word, a character where nothing is written apart, or what you write out, "the|old|man|sings".
    method: "reference" is the paper's code: effects that fail a permutation test over time count as 0, and z > bar over all
    units is chosen; about 3% of all units pass even in noise, for z is relative. "fdr" is absolute: a one-sided test per
    unit, Benjamini-Hochberg at rate q over all units and rates apart. over: "groups": paired t-test over the groups of
    streams, as the paper's data allow; it generalises over orders of the same sentences only, so that any unit whose mean
    over the words of one class differs from another's passes, random models included. "words" asks in addition that the
    amplitude exceeds what shuffling the word forms over the places gives (9,999 shuffles), so that it is no matter of which
    few words there are. bar: of z. q: false-discovery rate of "fdr".
    n_streams: streams per condition. groups: consecutive streams are averaged in so many groups. per_stream: sentences in
    a stream, drawn anew for each; by default all. phrase_units: units in a phrase, each a rate; by default those that
    divide the sentence (2 of 4), else all from 2 up. skip_first_sentences: of every stream, for a model's first tokens are
    unlike all others; 0 as in the paper. control_shuffle_order: the control takes the orders of the experiment; False keeps
    the file's order, as in the paper. units: "word", "character" or "auto". nearest: DFT at the nearest bin, as in the
    paper, instead of the exact rate. special: begin with the tokenizer's first special tokens (the paper: no).
    site: the paper's code reads the pre-activation ("pre") of GPT-2 and the down projection's input ("mlp") of others.
    permutations: of the test over time. null: "permutation" or "asymptotic" (white noise of the same variance).
    floor: read a second set of controls as if it were the experiment, and report what the whole procedure names there.
    seed: of streams, controls and permutations. batch_tokens: positions in a batch. quiet: no progress bar.

    Scores: z of SI and PI with failing units at 0; shared: the smaller of both. p_values: of the absolute test; shared:
    the larger. Cost: 2 * n_streams forward passes per label, 3 * with the floor; memory (T + word forms) * n float32 per
    condition. All units share the permutations, so false discoveries come together or not at all.
    Raises InputError for sentences of unequal length (naming the first), fewer than 8, streams too long for the model,
    rates above half the unit rate, and values out of range.
    Example: `patchclamp find syntax demo --text en=sentences.txt --text de=sätze.txt --out tagged.json`.
    """
    _check(method, over, null, q, n_streams, groups)
    settings = Settings(
        n_streams, groups, per_stream, None if phrase_units is None else tuple(phrase_units), skip_first_sentences,
        control_shuffle_order, units, nearest, special, site, permutations, null, seed, batch_tokens,
    )  # fmt: skip
    found: dict[str, Tagged] = {}
    floors: dict[str, Tagged] = {}
    chosen = []
    for name, sentences in _labelled(text, units).items():
        experiment, control, again = _read(model, sentences, settings, name, floor=floor, quiet=quiet)
        found[name] = tags(experiment, control, settings)
        chosen.append(found[name].choose(method, over=over, q=q, bar=bar))
        if again is not None:
            floors[name] = tags(again, control, settings)
    labels = tuple(f"{name}:{kind}" for name in found for kind in KINDS)
    arguments = {
        "method": method, "over": over, "q": q, "bar": bar, "n_streams": n_streams, "groups": groups,
        "per_stream": per_stream, "phrase_units": phrase_units, "skip_first_sentences": skip_first_sentences,
        "control_shuffle_order": control_shuffle_order, "units": units, "nearest": nearest, "special": special, "site": site,
        "permutations": permutations, "null": null, "floor": floor, "seed": seed,
    }  # fmt: skip
    taken = np.concatenate(chosen)
    layout = model.layouts[site]
    details = {name: details_of(found[name], chosen[at], layout, q=q, bar=bar) for at, name in enumerate(found)}
    chance = {name: counts_of(one, q=q, bar=bar) for name, one in floors.items()}
    key = method if method == "reference" else f"fdr over {over}"
    single = len(found) == 1
    return Finding(
        method=f"syntax {method}",
        labels=labels,
        layout=layout,
        model=dict(model.identity),
        chosen=taken,
        scores=np.concatenate([_scores(one) for one in found.values()]),
        member=taken,
        classes=_classes(chosen[0]) if single else None,
        class_names=(*KINDS, "none") if single else (),
        set_classes=KINDS if single else (),
        p_values=np.concatenate([_p_values(one.p(over)) for one in found.values()]),
        null=floor_of(labels, taken, chance, key, seed),
        parameters={key: value for key, value in arguments.items() if key != "method"},
        details=details,
        notes=notes_of(details, chance, key),
        provenance=provenance("find.syntax", arguments=arguments, inputs=_inputs(model, found), seed=seed),
    )


def tagged(
    model: LanguageModel, sentences: Iterable[Any] | Sentences, *, quiet: bool = False, **settings: Any
) -> Tagged:
    """Amplitudes, effect sizes, p-values and profiles of every unit on one list of sentences; keywords as in `syntax`."""
    how = Settings(**settings)
    _check("fdr", "words", how.null, 0.05, how.n_streams, how.groups)
    known = sentences if isinstance(sentences, Sentences) else Sentences.of(sentences, unit=how.units)
    experiment, control, _ = _read(model, known, how, "text", floor=False, quiet=quiet)
    return tags(experiment, control, how)


def _read(
    model: LanguageModel, sentences: Sentences, how: Settings, name: str, *, floor: bool, quiet: bool
) -> tuple[Sums, Sums, Sums | None]:
    """Sums of the experiment, the control and, for the floor, of another control."""
    size = len(sentences) if how.per_stream is None else how.per_stream
    if not 0 <= how.skip_first_sentences <= size - 4:
        raise InputError(f"skip_first_sentences={how.skip_first_sentences} of {size}; at least 4 must be left")
    plan = Plan(
        sentences, size - how.skip_first_sentences, how.skip_first_sentences, how.groups, _rates(sentences, how),
        how.nearest,
    )  # fmt: skip
    made = []
    for condition, replicate in (("experiment", 0), ("control", 0), ("control", 1))[: 3 if floor else 2]:
        texts = streams(
            sentences, condition, how.n_streams, seed=how.seed, per_stream=how.per_stream,
            shuffle_order=how.control_shuffle_order, replicate=replicate,
        )  # fmt: skip
        title = f"{name}: {condition}" if not replicate else f"{name}: second control"
        made.append(
            tag_sums(
                model, plan, texts, site=how.site, special=how.special, batch_tokens=how.batch_tokens, title=title,
                quiet=quiet,
            )
        )  # fmt: skip
    overlapping = made[0].overlapping / max(made[0].tokens, 1)
    if overlapping > 0:
        warnings.warn(f"{name}: {overlapping:.1%} of tokens lie in more than one unit and count for each", stacklevel=4)
    return made[0], made[1], made[2] if floor else None


def _rates(sentences: Sentences, how: Settings) -> tuple[Rate, ...]:
    n_units = sentences.n_units
    if how.phrase_units is not None:
        wanted = how.phrase_units
    else:
        within = range(2, n_units)
        wanted = tuple(k for k in within if n_units % k == 0) or tuple(within)
    if not wanted or max(wanted) >= n_units:
        raise InputError(f"phrases of {list(wanted)} units in sentences of {n_units}; give 2 to {n_units - 1}")
    return tuple(Rate(period, n_units) for period in (n_units, *wanted))


def tags(experiment: Sums, control: Sums, how: Settings) -> Tagged:
    """Effect sizes and p-values from the sums of both conditions; `how` decides on the null over time and the seed."""
    plan = experiment.plan
    amplitude = np.stack([experiment.amplitudes(), control.amplitudes()])
    gap = amplitude[0].mean(axis=1) - amplitude[1].mean(axis=1)  # (rates, n)
    effect = np.stack([gap[0], np.maximum(gap[1:].max(axis=0), 0.0)])
    waves = np.stack([basis(rate, plan.length, nearest=plan.nearest) for rate in plan.rates])
    series = experiment.mean_series
    if how.null == "permutation":
        chance = permutation_null(series, waves, permutations=how.permutations, seed=how.seed)
    else:
        chance = asymptotic_null(series, waves)
    per_rate = np.stack([paired_test(amplitude[0, at], amplitude[1, at]) for at in range(len(plan.rates))])
    return Tagged(
        plan.sentences,
        plan.rates,
        amplitude,
        effect,
        chance,
        _sentence_and_phrase(per_rate),
        _sentence_and_phrase(_over_words(experiment, how.seed)),
        np.stack([experiment.profile, control.profile]),
        np.stack([series, control.mean_series]),
        experiment.overlapping / max(experiment.tokens, 1),
    )


def _over_words(sums: Sums, seed: int) -> NDArray[np.float64]:
    """(rates, n) p of each amplitude against word forms shuffled over the places; 1 at a rate off the sentence's multiples."""
    means, share = sums.word_means()
    p = np.ones((len(sums.plan.rates), means.shape[1]))
    places = np.arange(sums.plan.sentences.n_units)
    known = [(at, rate.harmonic) for at, rate in enumerate(sums.plan.rates) if rate.harmonic is not None]
    waves = np.stack([share @ np.exp(-2j * np.pi * m * places / len(places)) for _, m in known])
    waves -= waves.mean(axis=1, keepdims=True)
    p[[at for at, _ in known]] = permutation_null(means, waves, permutations=WORD_PERMUTATIONS, seed=seed).p
    return p


def _sentence_and_phrase(p: NDArray[Any]) -> NDArray[np.float64]:
    """(2, n) from one p per rate: the smallest of several phrase rates times their number (Bonferroni)."""
    return np.stack([p[0], np.minimum(p[1:].min(axis=0) * (len(p) - 1), 1.0)])


def _scores(found: Tagged) -> NDArray[np.float64]:
    z = choose.standardised(np.where(found.passed, found.effect, 0.0))
    return np.stack([z[0], z[1], z.min(axis=0)])


def _p_values(p: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.stack([p[0], p[1], p.max(axis=0)]).astype(np.float32)


def _classes(chosen: NDArray[np.bool_]) -> NDArray[np.int8]:
    return np.where(chosen.any(axis=0), chosen.argmax(axis=0), len(KINDS)).astype(np.int8)


def _labelled(text: Any, units: str) -> dict[str, Sentences]:
    if isinstance(text, Corpus):
        return {name: Sentences.of(text.documents(name), unit=units, name=name) for name in text.labels}
    if not isinstance(text, Mapping) or not text:
        raise InputError("give sentences by label: a corpus, or {'en': [sentence, ...]}")
    known = {name: value for name, value in text.items() if isinstance(value, Sentences)}
    return {name: known[name] if name in known else Sentences.of(text[name], unit=units, name=name) for name in text}


def _inputs(model: LanguageModel, found: Mapping[str, Tagged]) -> dict[str, Any]:
    texts = {
        name: {"sentences": len(one.sentences), "sha256": sha256_text(to_json([list(u) for u in one.sentences.units]))}
        for name, one in found.items()
    }
    return {"model": dict(model.identity), "text": texts}


def _check(method: str, over: str, null: str, q: float, n_streams: int, groups: int) -> None:
    for name, value, known in (("method", method, METHODS), ("over", over, OVER), ("null", null, NULLS)):
        if value not in known:
            raise InputError(f"{name}={value!r} given; it is one of {', '.join(known)}")
    if not 0 < q < 1:
        raise InputError(f"q={q} given; a false-discovery rate lies between 0 and 1")
    if groups < 2 or n_streams < groups or n_streams % groups:
        raise InputError(f"{n_streams} streams in {groups} groups; give at least 2 groups and a multiple of them")


make_callable(__name__)
