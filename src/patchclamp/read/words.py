"""Units for a word: those whose direction points at its tokens, in any of its spellings.

A word is several tokens: with and without a leading space, in other cases, in other languages; where no spelling of a form is
one token, its first piece stands for it. Only the rows of the LM head of these tokens are multiplied with, so a whole model
takes seconds; how far a token stands out among all others follows from the head's mean and second moment.

Concept neurons of Davies 2025, arXiv 2501.02688, who reads the label of every neuron and looks concepts up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import read_json
from patchclamp.core.provenance import provenance
from patchclamp.models.head import head_of
from patchclamp.models.units import SETS_FORMAT, UnitSet, save_sets
from patchclamp.read.lm_head import NORMS, Readout, site_rows
from patchclamp.read.registry import readings
from patchclamp.read.token_map import strings_of, visible
from patchclamp.read.topk import Scan

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

SCORES = ("z", "dot", "cosine")
_SHORTEST = 2  # characters of a first piece that still says something, in scripts with an alphabet


@dataclass(frozen=True)
class Spelling:
    """One way to write a word: its form, the token it begins with, and whether that token is all of it."""

    form: str
    token: int
    whole: bool


@dataclass(frozen=True, eq=False)
class WordUnits:
    """The units found for each word, best first, with the token that each points at.

    sets: word -> units with their scores. spellings: word -> its tokens. rows(): word, unit, score, token, value (change of
    the token's logit per unit of activation), rank (of the token among all that the unit promotes, 0 is the first).
    """

    sets: Mapping[str, UnitSet]
    spellings: Mapping[str, tuple[Spelling, ...]]
    found: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.found]

    def tokens(self, word: str) -> list[int]:
        """The token ids of a word."""
        return list(dict.fromkeys(one.token for one in self.spellings[word]))

    def to_dict(self) -> dict[str, Any]:
        spelled = {word: [vars(one) for one in listed] for word, listed in self.spellings.items()}
        return {"reading": "word", "parameters": dict(self.parameters), "spellings": spelled, "rows": self.rows()}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.sets/1`, a set per word, so that `clamp`, `effect` and the atlas take it as it is."""
        extra = {**self.to_dict(), "provenance": dict(self.provenance)}
        return save_sets(path, self.sets, **extra)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WordUnits:
        """Read what `save` wrote."""
        data = read_json(path, format=SETS_FORMAT)
        try:
            return cls(
                sets={word: UnitSet.from_dict(entry, data["model"]) for word, entry in data["sets"].items()},
                spellings={word: tuple(Spelling(**one) for one in rows) for word, rows in data["spellings"].items()},
                found=data["rows"],
                parameters=data["parameters"],
                provenance=data["provenance"],
            )
        except (KeyError, TypeError, AttributeError) as problem:
            raise DamagedError(f"{path} holds sets, but not the units of words: {problem!r}") from problem

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        drawn = Table(title="Units that point at words", title_justify="left")
        for name in ("word", "unit", "score", "token", "logit", "rank"):
            drawn.add_column(name, justify="left" if name in ("word", "unit", "token") else "right")
        for row in self.found:
            numbers = f"{row['score']:.2f}", f"{row['value']:.3g}", f"{row['rank']:,}"
            drawn.add_row(
                Text(row["word"]), row["unit"], numbers[0], Text(visible(row["text"])), numbers[1], numbers[2]
            )
        return drawn


@readings.add("word")
def word_units(
    model: LanguageModel,
    *,
    words: Sequence[str] | Mapping[str, Sequence[str]],
    sites: str | Sequence[str] = "mlp",
    top: int = 10,
    score: Literal["z", "dot", "cosine"] = "z",
    norm: Literal["fold", "none"] = "fold",
    sign: int = 1,
) -> WordUnits:
    """The units that promote a word most, in any of its token spellings.

    words: a word each, or NAME=FORM|FORM|... for a concept with several forms, such as water=water|eau|вода (in Python also
    a mapping from name to forms). sites: whose units are looked through. top: how many units for each word. score: z is the
    logit of the word's best token in standard deviations over all tokens; dot the logit per unit of activation; cosine
    the angle. norm: fold the final norm's gain in, or none. sign: 1 for units that promote the word, -1 for those that
    suppress it.

    Raises InputError for a word that the tokenizer can't write, an empty list and a model without an LM head or tokenizer.

    Example: `patchclamp read word demo --words blue,Paris --top 5`.
    """
    if score not in SCORES or norm not in NORMS[:2] or sign not in (1, -1):
        raise InputError(
            f"score={score!r}, norm={norm!r}, sign={sign}; choose {', '.join(SCORES)}; fold or none; 1 or -1"
        )
    if top < 1:
        raise InputError(f"top={top} given; ask for at least one unit")
    forms = forms_of(words)
    if model.tokenizer is None:
        raise InputError(f"{model.name} came without a tokenizer, so words can't be looked up; give one to load")
    head = head_of(model)
    spelled = {word: spellings(model.tokenizer, listed, head.tokens) for word, listed in forms.items()}
    listed = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
    readout = Readout(head, 1, norm, "cosine" if score == "cosine" else "dot", False, False, False)
    best = {word: _Best(top) for word in spelled}
    ids = sorted({one.token for each in spelled.values() for one in each})
    column = {token: number for number, token in enumerate(ids)}
    for site in listed:
        for flat, rows, reads in site_rows(model, site, None, fold=norm == "fold"):
            for start in range(0, rows.shape[0], readout.scan.rows):
                pointed = readout.pointed(rows[start : start + readout.scan.rows].to(head.matrix.device), reads)
                values = readout.logits(pointed, ids)
                scored = readout.z_scores(pointed, values) if score == "z" else values
                for word, each in spelled.items():
                    own = torch.tensor([column[one.token] for one in each], device=scored.device)
                    strongest, which = (scored[:, own] * sign).max(1)
                    best[word].add(site, flat[start : start + len(strongest)], strongest, which)
    rows_found = [row for word in spelled for row in _described(model, readout, word, spelled[word], best[word], sign)]
    arguments = {
        "words": {word: list(each) for word, each in forms.items()}, "sites": listed, "top": top, "score": score,
        "norm": norm, "sign": sign,
    }  # fmt: skip
    sets = {
        word: UnitSet.of(
            model, *zip(*[(row["unit"], row["score"]) for row in rows_found if row["word"] == word], strict=True)
        )
        for word in spelled
    }
    return WordUnits(
        sets=sets,
        spellings=spelled,
        found=rows_found,
        parameters=arguments,
        provenance=provenance("read.word", arguments=arguments, inputs={"model": model.identity}),
    )


def forms_of(words: str | Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Word -> its forms; `name=form|form` gives a concept several."""
    if isinstance(words, Mapping):
        found = {str(name): tuple([forms] if isinstance(forms, str) else forms) for name, forms in words.items()}
    else:
        found = {}
        for entry in [words] if isinstance(words, str) else words:
            name, given, forms = entry.partition("=")
            found[name.strip()] = tuple(one.strip() for one in (forms if given else name).split("|") if one.strip())
    if not found:
        raise InputError("no words given; name at least one")
    empty = [name for name, forms in found.items() if not name or not forms or not all(one.strip() for one in forms)]
    if empty:
        raise InputError(f"the word {empty[0]!r} has no form; write a word, or NAME=FORM|FORM")
    return found


def spellings(tokenizer: Any, forms: Iterable[str], tokens: int) -> tuple[Spelling, ...]:
    """The tokens that forms of a word begin with: with and without a leading space, as written, lower, Title and UPPER.

    Whole-token spellings where a form has any, otherwise the first pieces that still say something. tokens: size of the
    LM head. InputError if nothing is left.
    """
    found: dict[int, Spelling] = {}
    listed = tuple(forms)
    for form in listed:
        cases = dict.fromkeys((form, form.lower(), form.capitalize(), form.upper()))
        tried = [_spelled(tokenizer, space + case) for case in cases for space in (" ", "")]
        known = [one for one in tried if one is not None and one.token < tokens]
        whole = [one for one in known if one.whole]
        usable = whole or [one for one in known if _telling(tokenizer, one.token)]
        for one in usable:
            found.setdefault(one.token, one)
    if not found:
        raise InputError(
            f"no token of this model writes {' or '.join(map(repr, listed))}, not even its beginning; choose another word"
        )
    return tuple(found.values())


def _spelled(tokenizer: Any, text: str) -> Spelling | None:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    texts = strings_of(tokenizer, ids)
    while len(ids) > 1 and not texts[ids[0]].strip():  # a space of its own in front of the word
        ids = ids[1:]
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not ids or unknown in ids:
        return None
    return Spelling(text, int(ids[0]), len(ids) == 1)


def _telling(tokenizer: Any, token: int) -> bool:
    """Whether a first piece is more than a letter: two characters, or one that stands for a syllable or a word."""
    text = str(tokenizer.decode([token])).strip()
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return False
    return len(text) >= _SHORTEST or ord(text[0]) >= 0x3000


class _Best:
    """The best units so far: (site, flat position, score, which token)."""

    def __init__(self, top: int) -> None:
        self._top = top
        self.entries: list[tuple[str, int, float, int]] = []

    def add(self, site: str, flat: np.ndarray[Any, Any], scores: Tensor, which: Tensor) -> None:
        count = min(self._top, len(scores))
        order = torch.sort(scores, descending=True, stable=True).indices[:count].cpu()
        scores, which = scores.cpu(), which.cpu()
        new = [(site, int(flat[i]), float(scores[i]), int(which[i])) for i in order.tolist()]
        self.entries = sorted([*self.entries, *new], key=lambda entry: -entry[2])[: self._top]


def _described(
    model: LanguageModel, readout: Readout, word: str, spelled: Sequence[Spelling], best: _Best, sign: int
) -> list[dict[str, Any]]:
    """Rows of one word, with the value and the rank of its token among all tokens of the unit."""
    texts = strings_of(model.tokenizer, [one.token for one in spelled])
    places = {(site, flat): number for number, (site, flat, _, _) in enumerate(best.entries)}
    lines: list[dict[str, Any]] = [{} for _ in best.entries]
    scan = Scan(readout.scan.matrix)
    for site in dict.fromkeys(site for site, _, _, _ in best.entries):
        mine = np.array(sorted(flat for other, flat, _, _ in best.entries if other == site), dtype=np.int64)
        for flat, rows, reads in site_rows(model, site, mine, fold=readout.norm == "fold"):
            pointed = readout.pointed(rows.to(scan.matrix.device), reads)
            values = scan.product(pointed) if not readout.cosine else readout.logits(pointed, None)
            for row, position in enumerate(flat.tolist()):
                number = places[site, position]
                one = spelled[best.entries[number][3]]
                value = values[row, one.token]
                ahead = (values[row] > value) if sign > 0 else (values[row] < value)
                lines[number] = {
                    "word": word,
                    "unit": str(model.layouts[site].unit(position)),
                    "score": best.entries[number][2],
                    "token": one.token,
                    "text": texts[one.token],
                    "whole": one.whole,
                    "value": float(value),
                    "rank": int(ahead.sum()),
                }
    return lines
