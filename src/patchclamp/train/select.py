"""`select()` ranks a pool of samples by what they have in common with a few target samples and keeps the best.

    found = select(pool, target, how="features", budget=0.05, model=model, dictionary=sae)
    tuned = finetune(model, found.corpus(), steps=100)

The ways to rank are the registry `selections`: features (monosemantic data selection), neurons, embedding, bm25, random.
"""

from __future__ import annotations

import inspect
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError, ModelError
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import encode
from patchclamp.train.copies import repeated, target_copies
from patchclamp.train.samples import Samples
from patchclamp.train.selected import Selected
from patchclamp.train.selections import Scores, selections

if TYPE_CHECKING:
    from patchclamp.data.corpora import Corpus
    from patchclamp.data.tasks import Task
    from patchclamp.models.load import LanguageModel

COUNTED = ("samples", "tokens")
COPIES = ("keep", "drop")


def select(
    pool: Samples | Corpus | Task | list[str],
    target: Samples | Corpus | Task | list[str] | None = None,
    how: str = "features",
    *,
    budget: int | float = 0.05,
    counting: str = "samples",
    copies: str = "keep",
    reverse: bool = False,
    model: LanguageModel | None = None,
    seed: int = 0,
    quiet: bool = False,
    **options: Any,
) -> Selected:
    """The pool's samples that are closest to the target, best first, within a budget; ties go to the earlier sample.

    pool, target: corpora, tasks or lists of texts; the pool is streamed and only the chosen samples are held. how: a name
    in `selections`. budget: a number of samples (int), or a share of the pool above 0 up to 1.0 (float), rounded up. counting:
    "samples", or "tokens" of the model's tokenizer: the longest beginning of the ranking that fits is taken. copies: "drop"
    leaves out pool samples that repeat the target or an earlier sample; they are counted in any case. reverse: the samples
    farthest from the target. options: of the way that was chosen.
    InputError for an empty pool or target, a budget larger than the pool, or an option that the way doesn't have.
    """
    _check(counting, copies, budget)
    sampled = Samples.of(pool)
    aim = None if target is None else Samples.of(target, "target")
    scores = _scores(how, sampled, aim, {"model": model, "seed": seed, "quiet": quiet}, options)
    bad = np.flatnonzero(~np.isfinite(scores.values))
    if len(bad):
        raise ModelError(f"the score of sample {bad[0]} is not finite; load the model in float32")
    left_out, notes = _copies(sampled, aim, copies)
    order = np.argsort(scores.values if reverse else -scores.values, kind="stable")
    order = order[~left_out[order]]
    tokens = _tokens(model, sampled) if counting == "tokens" else np.ones(len(scores.values), dtype=np.int64)
    chosen = _within(order, tokens, budget, counting)
    for note in [*scores.notes, *notes]:
        warnings.warn(note, stacklevel=2)
    arguments = {
        "how": how, "budget": budget, "counting": counting, "copies": copies, "reverse": reverse, **_described(options)
    }  # fmt: skip
    inputs = {"pool": sampled.identity, "target": None if aim is None else aim.identity}
    if model is not None:
        inputs["model"] = {key: value for key, value in model.identity.items() if key != "sites"}
    return Selected(
        how,
        chosen,
        scores.values,
        sampled.taken(chosen.tolist()),
        [*scores.notes, *notes],
        scores.details,
        provenance("train.select", arguments=arguments, inputs=inputs, seed=seed),
        sampled.task,
    )


def _check(counting: str, copies: str, budget: Any) -> None:
    if counting not in COUNTED or copies not in COPIES:
        raise InputError(
            f"counting={counting!r}, copies={copies!r}; counting is samples or tokens, copies keep or drop"
        )
    share = isinstance(budget, float)
    if (
        isinstance(budget, bool)
        or not isinstance(budget, int | float)
        or (share and not 0 < budget <= 1)
        or budget <= 0
    ):
        raise InputError(
            f"budget={budget!r} given; a whole number of {counting} from 1, or a share of the pool above 0 and up to 1.0"
        )


def _scores(how: str, pool: Samples, target: Samples | None, shared: dict[str, Any], options: dict[str, Any]) -> Scores:
    """Call the way with what it takes; InputError for what it needs or doesn't know."""
    way = selections[how]
    known = inspect.signature(way).parameters
    if unknown := [name for name in options if name not in known]:
        mine = [name for name in known if name not in ("pool", "target", *shared)]
        raise InputError(f"selection by {how} has no option {unknown[0]!r}; it has {', '.join(mine) or 'none'}")
    given = {name: value for name, value in shared.items() if name in known}
    if "model" in given and given["model"] is None:
        raise InputError(f"selection by {how} needs a model; give model=")
    if "target" not in known:
        return way(pool, **given, **options)
    if target is None:
        raise InputError(f"selection by {how} needs target samples; give target=")
    return way(pool, target, **given, **options)


def _copies(pool: Samples, target: Samples | None, copies: str) -> tuple[NDArray[np.bool_], list[str]]:
    """(n,) which samples are left out, and what is to be said about copies."""
    again = repeated(pool)
    same = np.zeros_like(again) if target is None else target_copies(pool, target)
    done = "were left out" if copies == "drop" else "can be left out with copies='drop'"
    said = [
        f"{count} pool samples {what}; they {done}"
        for count, what in (
            (int(same.sum()), "repeat target samples"),
            (int((again & ~same).sum()), "repeat earlier pool samples"),
        )
        if count
    ]
    return ((again | same) if copies == "drop" else np.zeros_like(again)), said


def _tokens(model: LanguageModel | None, pool: Samples) -> NDArray[np.int64]:
    """(n,) tokens of each sample, special ones not counted."""
    if model is None:
        raise InputError("a budget of tokens needs a tokenizer; give model=")
    found = np.zeros(sum(1 for _ in pool), dtype=np.int64)
    for piece in encode(model.tokenizer, pool, max_length=model.max_length):
        found[piece.document] += piece.counted
    return found


def _within(order: NDArray[np.int64], size: NDArray[np.int64], budget: int | float, counting: str) -> NDArray[np.int64]:
    """The longest beginning of the ranking whose sizes add up to at most the budget."""
    total = int(size[order].sum())
    limit = math.ceil(budget * total - 1e-9) if isinstance(budget, float) else budget
    if limit > total:
        raise InputError(f"a budget of {limit} {counting} asked for, but the pool has {total}")
    kept = int(np.searchsorted(np.cumsum(size[order]), limit, side="right"))
    if not kept:
        raise InputError(f"the best sample has {size[order[0]]} tokens, more than the budget of {limit}; give more")
    return order[:kept]


def _described(options: dict[str, Any]) -> dict[str, Any]:
    """Options as plain data; a dictionary by its identity."""
    found = {}
    for name, value in options.items():
        plain = value is None or isinstance(value, bool | int | float | str)
        keys = ("name", "site", "layer", "n_features", "fingerprint", "folder")
        found[name] = value if plain else {key: getattr(value, key, None) for key in keys}
    return found


make_callable(__name__)
