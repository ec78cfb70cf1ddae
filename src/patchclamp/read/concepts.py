"""Does a feature stand for a concept? It should be active on texts of it (detection), and adding it should bring it about.

Both scores of Shafran, Geiger, Geva 2025 (arXiv 2506.10920) for the features of any dictionary: matrix factorisations,
sparse autoencoders, differences of means, components, random directions. Detection compares directions with activations
by cosine, steering adds directions at strengths matched by their effect, so lengths never matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import corpus
from patchclamp.intervene.strengths import PROMPT, TARGETS, match_kl
from patchclamp.models.features import Dictionary
from patchclamp.read.concept import Concept
from patchclamp.read.judges import Judge, OfflineJudge, checked, harmonic
from patchclamp.read.steering import write
from patchclamp.read.tapped import tapped

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


@dataclass(frozen=True, eq=False)
class Detection:
    """How well each feature tells texts of a concept from neutral ones.

    scores: (features,) float64, log(mean score on positives / mean on neutrals); a text scores the largest cosine of the
    direction with a token's activations. NaN where a mean is not positive (the ratio has no logarithm). auroc: (features,)
    probability that a positive text scores above a neutral one, ties half; it needs no such condition.
    """

    concept: str
    dictionary: str
    scores: NDArray[np.float64]
    auroc: NDArray[np.float64]
    positive: NDArray[np.float64]
    neutral: NDArray[np.float64]

    @property
    def undefined(self) -> int:
        """Features without a log-ratio."""
        return int(np.isnan(self.scores).sum())

    def best(self, by: str = "auroc") -> int:
        """The feature that detects best by "auroc" (ties by the gap of the means) or by "score"."""
        if by not in ("auroc", "score"):
            raise InputError(f"by={by!r}; choose auroc or score")
        gap = self.positive - self.neutral
        first = self.auroc if by == "auroc" else np.nan_to_num(self.scores, nan=-np.inf)
        return int(np.lexsort((-np.arange(len(gap)), gap, first))[-1])

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per feature."""
        values = zip(self.scores, self.auroc, self.positive, self.neutral, strict=True)
        return [
            {"concept": self.concept, "dictionary": self.dictionary, "feature": number, "score": _plain(score),
             "auroc": float(auroc), "positive": float(positive), "neutral": float(neutral)}
            for number, (score, auroc, positive, neutral) in enumerate(values)
        ]  # fmt: skip


def sentence_scores(
    model: LanguageModel,
    dictionary: Dictionary,
    texts: Sequence[str],
    *,
    select: Selection | None = None,
    batch_tokens: int = 4096,
) -> NDArray[np.float64]:
    """(texts, features) float64: largest cosine of each direction with the activations of a token that counts.

    A direction or token of length 0 has cosine 0. Raises InputError for a text without a token that counts.
    """
    check_model(model, dictionary)
    rows = torch.nn.functional.normalize(dictionary.directions.to(model.device, torch.float32), dim=1)
    found = np.full((len(texts), len(rows)), -np.inf)
    tap = (dictionary.site, dictionary.layer)
    if isinstance(texts, str) or not texts:
        raise InputError("texts must be a list of at least one text")
    for seen in tapped(model, corpus(texts=list(texts)), "texts", tap, select=select, batch_tokens=batch_tokens):
        cosines = torch.nn.functional.normalize(seen.values, dim=-1) @ rows.to(seen.values.device).T
        cosines = cosines.masked_fill(~seen.batch.keep.to(cosines.device)[..., None], float("-inf"))
        where = seen.batch.document.cpu().numpy()
        np.maximum.at(found, where, cosines.amax(1).double().cpu().numpy())
    empty = np.flatnonzero(np.isneginf(found).any(1))
    if len(empty):
        raise InputError(f"text {int(empty[0])} ({texts[int(empty[0])][:40]!r}) has no token that counts")
    return found


def concept_detection(
    model: LanguageModel,
    dictionary: Dictionary,
    positives: Sequence[str],
    neutrals: Sequence[str],
    *,
    concept: str = "",
    select: Selection | None = None,
    batch_tokens: int = 4096,
) -> Detection:
    """Score all features of a dictionary as detectors of a concept: log-ratio of mean sentence scores, and AUROC.

    The paper has 5 activating and 5 neutral sentences per feature, written from the feature's label; here both are given.
    """
    how: dict[str, Any] = {"select": select, "batch_tokens": batch_tokens}
    return detection_of(
        sentence_scores(model, dictionary, positives, **how),
        sentence_scores(model, dictionary, neutrals, **how),
        concept=concept,
        dictionary=dictionary.name,
    )


def detection_of(
    positive: NDArray[np.float64], neutral: NDArray[np.float64], *, concept: str = "", dictionary: str = ""
) -> Detection:
    """The detection scores of sentence scores (texts, features) of both kinds."""
    up, down = positive.mean(0), neutral.mean(0)
    both = (up > 0) & (down > 0)
    ratio = np.full(len(up), np.nan)
    ratio[both] = np.log(up[both] / down[both])
    ranks = rankdata(np.concatenate([positive, neutral]), axis=0)[: len(positive)].sum(0)
    wins = ranks - len(positive) * (len(positive) + 1) / 2
    return Detection(concept, dictionary, ratio, wins / (len(positive) * len(neutral)), up, down)


@dataclass(frozen=True, eq=False)
class Steering:
    """What adding a feature did.

    score: mean final score (0 to 2, harmonic mean of concept and fluency) of the samples at the strength chosen on the
    other half of the samples, halves exchanged and averaged; best: mean at the best strength over all samples, the
    paper's reading, which is optimistic. plain: mean final score without steering. target: KL of the best strength, None
    if no strength reached any target. rows: one plain dict per strength. texts: (target, sample) -> what was written.
    """

    concept: str
    dictionary: str
    feature: int
    score: float
    best: float
    plain: float
    target: float | None
    strengths: tuple[dict[str, Any], ...]
    texts: Mapping[tuple[float, int], str]

    def to_dict(self) -> dict[str, Any]:
        return {
            "concept": self.concept, "dictionary": self.dictionary, "feature": self.feature, "score": self.score,
            "best": self.best, "plain": self.plain, "target": self.target, "strengths": list(self.strengths),
            "written": "" if self.target is None else self.texts[self.target, 0],
        }  # fmt: skip


def steering_score(
    model: LanguageModel, dictionary: Dictionary, feature: int, concept: Concept, **arguments: Any
) -> Steering:
    """The steering score of one feature for one concept; arguments: those of `steering_scores`."""
    return steering_scores(model, dictionary, [(feature, concept)], **arguments)[0]


def steering_scores(
    model: LanguageModel,
    dictionary: Dictionary,
    pairs: Sequence[tuple[int, Concept]],
    *,
    judge: Judge | None = None,
    prompt: str = PROMPT,
    targets: Sequence[float] = TARGETS,
    samples: int = 8,
    new_tokens: int = 50,
    sign: int = 1,
    batch_rows: int = 64,
    seed: int = 0,
) -> list[Steering]:
    """Add features to the activations at every position, at strengths matched by their effect, and judge what is written.

    pairs: (feature, concept). judge: by default `OfflineJudge(model)`. targets: KL of the next token after the prompt, in
    nats. samples: per strength, drawn from the 30 likeliest tokens with top-p 0.3, the same random numbers at every
    strength and for every feature. sign: -1 subtracts the feature. Strengths that no alpha in [0.01, 10,000] reaches are
    left out and reported. Raises InputError for a feature that the dictionary lacks, and for fewer than 2 samples.
    """
    check_model(model, dictionary)
    if samples < 2 or sign not in (1, -1) or not pairs:
        raise InputError(
            f"{len(pairs)} features, samples={samples}, sign={sign}; give features, 2 samples or more, sign 1 or -1"
        )
    judge = judge or OfflineJudge(model)
    tap = (dictionary.site, dictionary.layer)
    for feature, _ in pairs:
        if not 0 <= feature < dictionary.n_features:
            raise InputError(f"feature {feature} asked for; {dictionary!r} has 0 to {dictionary.n_features - 1}")
    rows = dictionary.directions[[feature for feature, _ in pairs]].to(model.device, torch.float32)
    rows = sign * torch.nn.functional.normalize(rows, dim=1)
    matched = match_kl(model, tap, rows, prompt, targets=targets)
    which, goal = torch.isfinite(matched.alphas).nonzero(as_tuple=True)
    vectors = rows[which.to(rows.device)] * matched.alphas[which, goal, None].to(rows.device, torch.float32)
    vectors = torch.cat([rows.new_zeros(1, rows.shape[1]), vectors])  # the first is the model as it is
    numbers = list(range(samples)) * len(vectors)
    new = write(
        model, tap, vectors.repeat_interleave(samples, 0), prompt, numbers,
        new_tokens=new_tokens, batch_rows=batch_rows, seed=seed,
    )  # fmt: skip
    texts = [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
    plain, written = texts[:samples], texts[samples:]
    found = []
    for number, (feature, concept) in enumerate(pairs):
        mine = (which == number).nonzero().flatten().tolist()
        drawn = {float(matched.targets[int(goal[at])]): written[at * samples : (at + 1) * samples] for at in mine}
        found.append(_judged(judge, concept, prompt, plain, drawn, matched, number, feature, dictionary.name))
    return found


def _judged(
    judge: Judge, concept: Concept, prompt: str, plain: list[str], drawn: Mapping[float, list[str]], matched: Any,
    number: int, feature: int, dictionary: str,
) -> Steering:  # fmt: skip
    flat = [*plain, *(text for texts in drawn.values() for text in texts)]
    verdicts = np.array(checked(judge, concept, prompt, flat)).reshape(1 + len(drawn), len(plain), 2)
    final = np.array([[harmonic(*pair) for pair in row] for row in verdicts.tolist()])
    strengths = []
    for row, target in enumerate(drawn, start=1):
        at = matched.targets.index(target)
        strengths.append(
            {"target": target, "alpha": float(matched.alphas[number, at]), "kl": float(matched.kl[number, at]),
             "reached": bool(matched.reached[number, at]), "concept": float(verdicts[row, :, 0].mean()),
             "fluency": float(verdicts[row, :, 1].mean()), "score": float(final[row].mean())}
        )  # fmt: skip
    unmet = [{"target": target, "reached": False} for target in matched.targets if target not in drawn]
    best = int(final[1:].mean(1).argmax()) if drawn else None
    return Steering(
        concept=concept.name,
        dictionary=dictionary,
        feature=feature,
        score=_crossed(final[1:]) if drawn else float(final[0].mean()),
        best=float(final[0].mean()) if best is None else float(final[1 + best].mean()),
        plain=float(final[0].mean()),
        target=None if best is None else list(drawn)[best],
        strengths=(*strengths, *unmet),
        texts={(target, i): text for target, texts in drawn.items() for i, text in enumerate(texts)},
    )


def _crossed(final: NDArray[np.float64]) -> float:
    """Mean score at the strength that the other half of the samples chose, (strengths, samples) -> number."""
    even, odd = final[:, 0::2].mean(1), final[:, 1::2].mean(1)
    return float(odd[even.argmax()] + even[odd.argmax()]) / 2


@dataclass(frozen=True, eq=False)
class ConceptScores:
    """Detection and steering of several concepts by several dictionaries.

    rows: one plain dict per concept and dictionary: the feature, chosen on the concepts' own texts, and its scores, the
    detection ones on texts that the choice did not see.
    """

    rows: tuple[dict[str, Any], ...]
    provenance: Mapping[str, Any]

    def of(self, dictionary: str, key: str) -> list[float]:
        """The values of one column for a dictionary, concept after concept; NaN where there is none."""
        return [_number(row[key]) for row in self.rows if row["dictionary"] == dictionary]

    @property
    def dictionaries(self) -> list[str]:
        return list(dict.fromkeys(row["dictionary"] for row in self.rows))


def concept_scores(
    model: LanguageModel,
    dictionaries: Sequence[Dictionary],
    concepts: Sequence[Concept],
    held_out: Sequence[Concept],
    *,
    by: str = "auroc",
    steer: bool = True,
    select: Selection | None = None,
    seed: int = 0,
    **steering: Any,
) -> ConceptScores:
    """For every concept and dictionary: choose the feature that detects it, score it on other texts, steer with it.

    held_out: the same concepts with other texts, in the same order. A dictionary with a feature labelled by a concept's name
    (a difference of means) uses that feature. by: "auroc" or "score", what chooses. steering: of `steering_scores`.
    """
    if [one.name for one in concepts] != [one.name for one in held_out]:
        raise InputError("held_out must hold the same concepts as concepts, in the same order, with other texts")
    for seen, unseen in zip(concepts, held_out, strict=True):
        if {*seen.positives, *seen.neutrals} & {*unseen.positives, *unseen.neutrals}:
            raise InputError(f"the concept {seen.name!r} has the same text in both parts; keep them apart")
    rows = []
    for dictionary in dictionaries:
        scores = _scored(model, dictionary, concepts, held_out, select)
        chosen = [_chosen(dictionary, one, found, by) for one, (found, _) in zip(concepts, scores, strict=True)]
        pairs = list(zip(chosen, concepts, strict=True))
        did = steering_scores(model, dictionary, pairs, seed=seed, **steering) if steer else [None] * len(pairs)
        for feature, concept, (seen_score, unseen_score), steered_by in zip(chosen, concepts, scores, did, strict=True):
            rows.append(
                {"concept": concept.name, "dictionary": dictionary.name, "feature": feature,
                 "auroc": float(unseen_score.auroc[feature]), "detection": _plain(unseen_score.scores[feature]),
                 "auroc_seen": float(seen_score.auroc[feature]), "detection_seen": _plain(seen_score.scores[feature]),
                 "undefined": unseen_score.undefined / len(unseen_score.scores),
                 **({} if steered_by is None else steered_by.to_dict() | {"dictionary": dictionary.name})}
            )  # fmt: skip
    arguments = {"by": by, "steer": steer, **{key: value for key, value in steering.items() if key != "judge"}}
    inputs = {"model": dict(model.identity), "dictionaries": {one.name: one.fingerprint for one in dictionaries}}
    return ConceptScores(tuple(rows), provenance("read.concept_scores", arguments=arguments, inputs=inputs, seed=seed))


def _scored(
    model: LanguageModel,
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    held_out: Sequence[Concept],
    select: Selection | None,
) -> list[tuple[Detection, Detection]]:
    """Detection on the texts given and on those held out; every text is read once, however many concepts share it."""
    texts = list(dict.fromkeys(t for one in (*concepts, *held_out) for t in (*one.positives, *one.neutrals)))
    values = sentence_scores(model, dictionary, texts, select=select)
    at = {text: number for number, text in enumerate(texts)}

    def of(one: Concept) -> Detection:
        parts = [values[[at[text] for text in kind]] for kind in (one.positives, one.neutrals)]
        return detection_of(*parts, concept=one.name, dictionary=dictionary.name)

    return [(of(seen), of(unseen)) for seen, unseen in zip(concepts, held_out, strict=True)]


def _chosen(dictionary: Dictionary, concept: Concept, found: Detection, by: str) -> int:
    if dictionary.labels is not None and concept.name in dictionary.labels:
        return dictionary.labels.index(concept.name)
    return found.best(by)


def check_model(model: LanguageModel, dictionary: Dictionary) -> None:
    """MismatchError for a dictionary of another model, InputError for a place that the model lacks."""
    theirs = dictionary.model.get("fingerprint")
    if theirs is not None and theirs != model.fingerprint:
        raise MismatchError(f"{dictionary!r} was made for {dictionary.model.get('name')}, not for {model.name}")
    layout = model.layouts.get(dictionary.site)
    if layout is None or not 0 <= dictionary.layer < len(layout.widths):
        raise InputError(
            f"{dictionary!r} decomposes {dictionary.site} of layer {dictionary.layer}, which {model.name} lacks"
        )
    if layout.widths[dictionary.layer] != dictionary.d_in:
        raise InputError(
            f"{dictionary!r} takes {dictionary.d_in} numbers, but {dictionary.site} of layer {dictionary.layer} has "
            f"{layout.widths[dictionary.layer]}"
        )


def _plain(value: Any) -> float | None:
    return None if math.isnan(float(value)) else float(value)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
