"""Is the label true? Clamp the units that point at a word, and see whether the word becomes likelier, in numbers and in text.

Every number stands beside the same for random units of the same layers, clamped to the same values (Davies 2025, arXiv
2501.02688, clamps one neuron at several values and reads the text).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.intervene import clamp
from patchclamp.models.collect import Collector, taps_of
from patchclamp.models.hooks import observe
from patchclamp.models.units import UnitSet
from patchclamp.read.words import WordUnits

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

PROMPTS = ("The", "This is", "It was", "I see", "They said", "And then")


@dataclass(frozen=True, eq=False)
class WordChecks:
    """What clamping the units of each word does.

    Rows: word, units, plain and clamped (log-probability of the word as the next token, nats), change, control_mean and
    control_high (mean and largest change under random units), p (rank among them), and where asked for the shares of
    generated texts that hold the word: said_plain, said_clamped, said_control.
    """

    found: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.found]

    def raised(self, alpha: float = 0.05) -> list[str]:
        """Words that clamping makes likelier than random units do, at this level."""
        return [row["word"] for row in self.found if row["change"] > row["control_mean"] and row["p"] <= alpha]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows(), "parameters": dict(self.parameters), "provenance": dict(self.provenance)}


def check_words(
    model: LanguageModel,
    found: WordUnits,
    *,
    prompts: Sequence[str] = PROMPTS,
    top: int | None = None,
    strength: float = 1.0,
    controls: int = 20,
    generate: int = 0,
    seed: int = 0,
    quiet: bool = True,
) -> WordChecks:
    """Clamp each word's units and measure the word's probability as the next token, beside matched random units.

    prompts: neutral beginnings, whose next token is looked at. top: only so many of each word's units. strength: units are
    set to this times the largest magnitude that any unit of their layer reaches on the prompts; below 0 pushes the word
    away. controls: random sets with as many units in every layer, at the same values. generate: also write so many tokens
    after each prompt, plain, clamped and under the first random set.

    Probabilities are summed over the word's tokens and averaged over the prompts as logarithms. p = (1 + random sets with at
    least this change) / (1 + controls), so 20 controls are the fewest that reach 0.05.
    Raises InputError for no prompts, no controls and a strength that isn't finite, MismatchError for units of another model.
    """
    if not prompts or controls < 1 or not np.isfinite(strength) or generate < 0:
        raise InputError("at least one prompt, one control, a finite strength and generate of 0 or more are needed")
    sets = {word: units.top(top) if top is not None else units for word, units in found.sets.items()}
    for units in sets.values():
        units.check_model(model)
    ids, mask, last = _encoded(model, prompts)
    peaks = _peaks(model, {site for units in sets.values() for site in units.sites}, ids, mask)
    plain = _next(model, ids, mask, last)
    plain_texts = model.generate(list(prompts), max_new_tokens=generate) if generate else []
    rows = []
    with progress("words", len(sets), unit="words", quiet=quiet) as advance:
        for number, (word, units) in enumerate(sets.items()):
            tokens = found.tokens(word)
            forms = [one.form.strip() for one in found.spellings[word]]
            randoms = [units.matched_random(seed + 7919 * number + i) for i in range(controls)]
            changes, before = [], _log_p(plain, tokens)
            for chosen in (units, *randoms):
                with clamp(model, chosen, to=strength * _values(chosen, peaks)):
                    changes.append(_log_p(_next(model, ids, mask, last), tokens) - before)
            others = np.array(changes[1:])
            row = {
                "word": word, "units": len(units), "plain": before, "clamped": before + changes[0], "change": changes[0],
                "control_mean": float(others.mean()), "control_high": float(others.max()),
                "p": float((1 + (others >= changes[0]).sum()) / (1 + controls)),
            }  # fmt: skip
            if generate:
                row |= _said(model, prompts, generate, forms, plain_texts, (units, randoms[0]), strength, peaks)
            rows.append(row)
            advance(1)
    arguments = {
        "prompts": list(prompts), "top": top, "strength": strength, "controls": controls, "generate": generate, "seed": seed
    }  # fmt: skip
    made = provenance("read.check_words", arguments=arguments, inputs={"model": model.identity}, seed=seed)
    return WordChecks(rows, arguments, made)


def _encoded(model: LanguageModel, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """(prompts, longest) ids and mask, padded on the right, and the last position of each."""
    listed = [model.tokenize(prompt) for prompt in prompts]
    if not all(listed):
        raise InputError("a prompt has no tokens; give at least one word each")
    width = max(map(len, listed))
    ids = torch.tensor([row + [model.pad_id] * (width - len(row)) for row in listed])
    lengths = torch.tensor([len(row) for row in listed])
    return ids, (torch.arange(width) < lengths[:, None]).long(), lengths - 1


def _peaks(model: LanguageModel, sites: set[str], ids: Tensor, mask: Tensor) -> dict[str, NDArray[np.float64]]:
    """Site -> largest magnitude of any unit in each layer on the prompts, (layers,)."""
    found = {}
    kept = mask.flatten().bool()
    for site in sorted(sites):
        collector = Collector(model, site)
        with observe(model, taps_of(model, site), collector):
            model.trunk(ids, mask)
        layers = collector.layout.split(collector.values[kept])
        found[site] = np.array([float(one.abs().max()) if one.numel() else 0.0 for one in layers])
    return found


def _values(units: UnitSet, peaks: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The value of each unit, in the set's order: the peak of its layer."""
    parts = []
    for site, where in units.positions.items():
        layers = np.searchsorted(units.layouts[site].offsets, where, side="right") - 1
        parts.append(peaks[site][layers])
    return np.concatenate(parts)


def _next(model: LanguageModel, ids: Tensor, mask: Tensor, last: Tensor) -> Tensor:
    """(prompts, vocabulary) float64 log-probabilities of the next token."""
    logits = model.logits(ids, mask)
    rows = torch.arange(len(last), device=logits.device)
    return logits[rows, last.to(logits.device)].cpu().double().log_softmax(-1)


def _log_p(log_probabilities: Tensor, tokens: Sequence[int]) -> float:
    return float(log_probabilities[:, list(tokens)].logsumexp(1).mean())


def _said(
    model: LanguageModel,
    prompts: Sequence[str],
    length: int,
    forms: Sequence[str],
    plain: Sequence[str],
    sets: tuple[UnitSet, UnitSet],
    strength: float,
    peaks: Mapping[str, NDArray[np.float64]],
) -> dict[str, Any]:
    """Shares of texts that hold a form of the word, and one of them."""
    written = []
    for chosen in sets:
        with clamp(model, chosen, to=strength * _values(chosen, peaks)):
            written.append(model.generate(list(prompts), max_new_tokens=length))

    def share(texts: Sequence[str]) -> float:
        return sum(any(form.casefold() in text.casefold() for form in forms) for text in texts) / len(texts)

    return {
        "said_plain": share(plain),
        "said_clamped": share(written[0]),
        "said_control": share(written[1]),
        "text": written[0][0],
    }
