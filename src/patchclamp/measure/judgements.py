"""How similar a model judges ordered stimuli to be: one rating per pair, read in one of three labelled ways.

- `rating`: the expected rating under the probabilities of the rating strings "0.0" to "1.0" after the prompt
- `generated`: the number in the text that the model generates, as Li et al. 2025 (arXiv 2507.15851) do
- `cosine`: no prompt at all; the cosine of hidden states or embeddings of the single stimuli
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import Batch, Budget, Tokens, batches
from patchclamp.data.generate.years import PairPrompt, pair_prompts

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.recording import Recording

HOW = ("rating", "generated")
RATINGS = tuple(f"{step / 10:.1f}" for step in range(11))
_AT_ONCE = 64
_LOGITS = 2**28  # bytes of float32 logits in one batch
_DECIMAL, _WHOLE = re.compile(r"\d*\.\d+"), re.compile(r"\d+")


@dataclass(frozen=True, eq=False)
class Judgements:
    """A matrix of judged similarities and how it was read.

    similarity: (n, n) float64, row i the first value of the pair, NaN where there is no judgement. values: (n,). how:
    "rating", "generated" or "cosine". source: the same in words, for tables. failures: share of pairs without a judgement.
    rating_mass: mean probability that a rating string follows at all (`rating` only): near 0, the model does not
    rate, and its expected rating says little.
    """

    similarity: NDArray[np.float64]
    values: tuple[float, ...]
    how: str
    source: str
    failures: float = 0.0
    rating_mass: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def order_effect(self) -> float:
        """Mean |S_ij - S_ji| over pairs judged both ways; NaN if there are none."""
        gaps = np.abs(self.similarity - self.similarity.T)[np.triu_indices(len(self.values), 1)]
        gaps = gaps[~np.isnan(gaps)]
        return float(gaps.mean()) if len(gaps) else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the matrix included (None for NaN)."""
        rows = [[None if math.isnan(value) else value for value in row] for row in self.similarity.tolist()]
        effect = self.order_effect
        return {
            "how": self.how,
            "source": self.source,
            "values": list(self.values),
            "failures": self.failures,
            "rating_mass": self.rating_mass,
            "order_effect": None if math.isnan(effect) else effect,
            "similarity": rows,
            "provenance": self.provenance,
        }


def judge(
    model: LanguageModel,
    values: Sequence[int],
    *,
    condition: str = "year",
    language: str = "en",
    how: str = "rating",
    order: str = "both",
    ratings: Sequence[str] = RATINGS,
    max_new_tokens: int = 10,
    max_failures: float = 0.05,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Judgements:
    """Ask the model for the similarity of every pair of values.

    condition: "year" or "number", what the prompt calls the values. language: of the prompt. order: "both" asks all n^2
    ordered pairs, "upper" i <= j. how: "rating" needs probabilities only and never fails; "generated" decodes greedily,
    takes the first decimal number, else the first whole one, cut to [0, 1], and NaN if there is none. ratings: the strings
    that are weighed, each a number; none may begin another. max_failures: refuse more unreadable answers than this share.
    Under active clamps the clamped model is asked. Raises InputError for too many failures and unsuitable ratings.
    """
    if how not in HOW:
        raise InputError(f"how={how!r} given; it is one of {', '.join(HOW)} (cosines: measure.judgements.cosines)")
    prompts = pair_prompts(values, condition=condition, language=language, order=order)
    similarity = np.full((len(values), len(values)), np.nan)
    mass: float | None = None
    if how == "rating":
        found, masses = expected_ratings(
            model, [p.text for p in prompts], ratings=ratings, batch_tokens=batch_tokens, quiet=quiet
        )
        mass = float(masses.mean()) if len(masses) else None
        source = f"expected rating over {len(ratings)} rating strings"
    else:
        found = _generated(model, prompts, max_new_tokens, quiet)
        source = "rating parsed from generated text"
    for prompt, value in zip(prompts, found.tolist(), strict=True):
        similarity[prompt.first, prompt.second] = value
    failures = float(np.isnan(found).mean()) if len(found) else 0.0
    if failures > max_failures:
        raise InputError(
            f"{failures:.0%} of the answers of {model.name} hold no number (max_failures={max_failures:g}); it can't do this "
            "task in this way: use how='rating', or cosines of its hidden states"
        )
    arguments = {
        "condition": condition, "language": language, "how": how, "order": order, "ratings": list(ratings),
        "max_new_tokens": max_new_tokens, "max_failures": max_failures, "values": list(values),
    }  # fmt: skip
    made = provenance("measure.judge", arguments=arguments, inputs={"model": dict(model.identity)})
    return Judgements(similarity, tuple(map(float, values)), how, source, failures, mass, made)


def cosines(
    recording: Recording,
    label: str,
    values: Sequence[float],
    *,
    site: str = "resid",
    layer: int = -1,
    pool: str = "last",
    centred: bool = False,
) -> Judgements:
    """Cosine of the hidden states of single stimuli, from a recording with the statistic `pooled`.

    label: whose document i is values[i]. layer: of the site, counted from the end if negative. centred: subtract the mean
    over stimuli first, for hidden states share a large common direction.
    """
    pooled = recording.get("pooled", label, site)
    layout = pooled.layout
    chosen = layer + layout.n_layers if layer < 0 else layer
    span = layout.slice(chosen)
    columns = np.flatnonzero((pooled.units >= span.start) & (pooled.units < span.stop))
    if pool not in ("last", "mean", "max"):
        raise InputError(f"pool={pool!r} given; it is one of last, mean, max")
    if not len(columns) or len(pooled.n) != len(values):
        raise InputError(
            f"{len(values)} values, but the recording has {len(pooled.n)} documents of {label!r} and {len(columns)} units of "
            f"{site} in layer {chosen}"
        )
    vectors = np.concatenate([piece[:, columns] for piece in getattr(pooled, pool).pieces])
    source = f"cosine of {site}.{chosen} ({pool} token{', centred' if centred else ''})"
    return cosine_judgements(vectors, values, source=source, centred=centred)


def cosine_judgements(
    vectors: ArrayLike, values: Sequence[float], *, source: str = "cosine of embeddings", centred: bool = False
) -> Judgements:
    """The same from any vectors (n, width), such as those of an embedding model; a zero vector is similar to nothing (NaN)."""
    x = np.asarray(vectors, dtype=np.float64)
    if x.ndim != 2 or len(x) != len(values) or not x.shape[1] or not np.isfinite(x).all():
        raise InputError(f"vectors of shape {x.shape} for {len(values)} values; one finite vector per value is needed")
    x = x - x.mean(0) if centred else x
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = x / np.where(norm > 0, norm, np.nan)
    similarity = np.clip(unit @ unit.T, -1.0, 1.0)
    return Judgements(similarity, tuple(map(float, values)), "cosine", source, float(np.isnan(similarity).mean()))


def parse_rating(text: str) -> float:
    """The first decimal number of a text, else its first whole number, cut to [0, 1]; NaN if there is none."""
    match = _DECIMAL.search(text) or _WHOLE.search(text)
    return min(max(float(match[0]), 0.0), 1.0) if match else math.nan


def expected_ratings(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    ratings: Sequence[str] = RATINGS,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected rating of each prompt, (n,), and the probability that one of the ratings follows, (n,).

    Strings of several tokens are scored token by token; strings that begin alike share forward passes ("0.0" to "0.9" and
    "1.0" take two passes per prompt).
    """
    try:
        numbers = np.array([float(rating) for rating in ratings])
    except ValueError as problem:
        raise InputError(f"ratings {list(ratings)} given; each must be a number") from problem
    if len(set(ratings)) < 2 or len(set(ratings)) < len(ratings):
        raise InputError(f"ratings {list(ratings)} given; at least two different ones are needed")
    asked = _Asked(model, prompts, ratings)
    log_p = np.zeros((len(prompts), len(ratings)))
    budget = Budget(batch_tokens)
    vocabulary = int(model.hf.config.get_text_config().vocab_size)
    room = max(1, min(batch_tokens, _LOGITS // (4 * vocabulary)))
    with progress("rating pairs", len(asked.pieces), unit="passes", quiet=quiet) as advance:
        for batch in batches(asked.pieces, token_budget=room, pad_id=model.pad_id):
            for numbered, rows in budget.run(lambda part: asked.read(model, part), batch.to(model.device)):
                for piece, found in zip(numbered, rows, strict=True):
                    asked.add(log_p, piece, found)
            advance(len(batch))
    high = log_p.max(1, keepdims=True)
    weights = np.exp(log_p - high)
    return weights @ numbers / weights.sum(1), np.exp(high[:, 0]) * weights.sum(1)


class _Asked:
    """Token sequences that together give the probability of every rating after every prompt.

    The ratings' tokens form a tree; each inner node that begins no other inner node is one sequence per prompt, and the
    logits along it give the probabilities of all branches that leave it.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[str], ratings: Sequence[str]) -> None:
        self._end = _ending(model)
        shared, self._tails = self._split(model, prompts[0], ratings) if len(prompts) else ([], [])
        self._paths = _inner_paths(self._tails)
        self.pieces: list[Tokens] = []
        self._owner: list[tuple[int, int]] = []  # (prompt, path) of each piece
        self._counts: list[int] = []
        for number, prompt in enumerate(prompts):
            head = self._head(model, prompt, ratings) if number else shared
            longest = len(head) + max(len(path) for path in self._paths)
            if longest > model.max_length:
                raise InputError(f"a prompt has {longest} tokens; {model.name} takes {model.max_length}")
            for path_number, path in enumerate(self._paths):
                self.pieces.append(Tokens([*head, *path], None, len(self.pieces), 0))
                self._owner.append((number, path_number))
                self._counts.append(len(head))
        taken: set[tuple[int, ...]] = set()
        self._nodes: list[list[int]] = []  # path -> lengths of the beginnings that it is read at, each node once
        for path in self._paths:
            mine = [length for length in range(len(path) + 1) if path[:length] not in taken]
            taken.update(path[:length] for length in mine)
            self._nodes.append(mine)

    def read(self, model: LanguageModel, batch: Batch) -> tuple[list[int], list[Tensor]]:
        """Log-probabilities of the next token at each node of each piece, (nodes, vocabulary), of one batch."""
        logits = model.logits(batch.input_ids, batch.attention_mask)
        numbers = batch.document.tolist()
        rows = []
        for row, piece in enumerate(numbers):
            first = self._counts[piece] - 1
            at = torch.tensor([first + length for length in self._nodes[self._owner[piece][1]]], device=logits.device)
            rows.append(torch.log_softmax(logits[row, at].float(), -1)[:, self._branches()].double().cpu())
        return numbers, rows

    def add(self, log_p: NDArray[np.float64], piece: int, found: Tensor) -> None:
        """Add what a piece says to the log-probabilities (prompts, ratings)."""
        prompt, path_number = self._owner[piece]
        path, column = self._paths[path_number], {token: at for at, token in enumerate(self._branches())}
        for node, length in enumerate(self._nodes[path_number]):
            for rating, tail in enumerate(self._tails):
                if len(tail) > length and tail[:length] == path[:length]:
                    log_p[prompt, rating] += float(found[node, column[tail[length]]])

    def _branches(self) -> list[int]:
        return sorted({token for tail in self._tails for token in tail})

    def _split(
        self, model: LanguageModel, prompt: str, ratings: Sequence[str]
    ) -> tuple[list[int], list[tuple[int, ...]]]:
        """Tokens that the prompt followed by any rating begins with, and what each rating adds."""
        whole = [self._bare(model.tokenize(prompt + rating)) for rating in ratings]
        same = 0
        while all(len(ids) > same and ids[same] == whole[0][same] for ids in whole):
            same += 1
        tails = [tuple(ids[same:]) for ids in whole]
        for tail, rating in zip(tails, ratings, strict=True):
            if (
                any(other != tail and other[: len(tail)] == tail for other in tails)
                or tails.count(tail) > 1
                or not same
            ):
                raise InputError(
                    f"the rating {rating!r} begins another one or is tokenized like it; give others, such as 0.0"
                )
        return whole[0][:same], tails

    def _head(self, model: LanguageModel, prompt: str, ratings: Sequence[str]) -> list[int]:
        ids, tail = self._bare(model.tokenize(prompt + ratings[0])), self._tails[0]
        if tuple(ids[len(ids) - len(tail) :]) != tail:
            raise InputError(
                f"the tokenizer of {model.name} splits ratings differently after different prompts; use 'generated'"
            )
        return ids[: len(ids) - len(tail)]

    def _bare(self, ids: list[int]) -> list[int]:
        return ids[: len(ids) - self._end] if self._end else ids


def _inner_paths(tails: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The inner nodes of the tree of tails that begin no other inner node."""
    inner = {tail[:length] for tail in tails for length in range(len(tail))}
    return sorted(node for node in inner if not any(other != node and other[: len(node)] == node for other in inner))


def _ending(model: LanguageModel) -> int:
    """How many special tokens the tokenizer puts behind a text."""
    from patchclamp.data.batches import SpecialTokens

    return len(SpecialTokens.of(model.tokenizer).after)


def _generated(
    model: LanguageModel, prompts: Sequence[PairPrompt], max_new_tokens: int, quiet: bool
) -> NDArray[np.float64]:
    found: list[float] = []
    with progress("judging pairs", len(prompts), unit="pairs", quiet=quiet) as advance:
        for start in range(0, len(prompts), _AT_ONCE):
            part = [prompt.text for prompt in prompts[start : start + _AT_ONCE]]
            found += [parse_rating(text) for text in model.generate(part, max_new_tokens=max_new_tokens)]
            advance(len(part))
    return np.array(found)
