"""Semi-nonnegative matrix factorisation: activations as non-negative strengths of sparse signed groups of neurons.

Shafran, Geiger, Geva 2025, "Decomposing MLP activations into interpretable features via semi-nonnegative matrix
factorization" (arXiv 2506.10920). `factorise` works on any activations; `snmf` is the reading of a model's layer, whose
features come with the words they are strongest on. The result is a dictionary too: `factors.dictionary(...)` makes its
features units of the model.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.data.corpora import Corpus
from patchclamp.read.registry import readings
from patchclamp.read.snmf_factors import Convergence, Factors
from patchclamp.read.snmf_search import STARTS, search, start
from patchclamp.read.snmf_solver import CACHE, Data, State, solve
from patchclamp.record.activations import Activations

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

make_callable(__name__)

__all__ = ["Convergence", "Factors", "factorise", "snmf"]

SOLVERS = ("descent", "published")
WIDE = 8192  # from this width on the paper's share of neurons, 1 %; below it 5 %, as the paper does for GPT-2
TIED = 0.002  # of the sum of squares: runs that differ by less reproduce the data equally well
SEARCH = 100  # iterations of the published alternation before the descent


@readings.add("snmf")
def snmf(
    model: LanguageModel,
    *,
    text: Corpus,
    layer: int | None = None,
    site: str = "mlp",
    k: int = 50,
    sparsity: float | None = None,
    init: str = "best",
    restarts: int = 1,
    skip_first: int = 0,
    max_tokens: int = 1000,
    contexts: int = 25,
    to: str | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
    quiet: bool = False,
) -> Factors:
    """Decompose the activations of one layer into k sparse groups of neurons, each with the words it is strongest on.

    text: labelled text whose tokens are decomposed. layer: which one; by default the one at a third of the depth.
    site: what is decomposed; mlp, the vector that enters the down projection, as in the paper. k: number of features.
    sparsity: share of neurons in a feature; by default 0.01 where the layer has at least 8,192 of them and 0.05
    below. init: random, kmeans, svd, or best: the best of svd, kmeans and random starts. restarts: so many random
    starts. skip_first: leave out so many first positions of every text; the first one is an outlier in many models.
    max_tokens: at most so many of each label; the paper has about 5,000 in all. contexts: strongest tokens kept per
    feature. to: new folder for the features as a dictionary; `--features` of other commands takes it. batch_tokens:
    per forward pass. seed: of the random starts. quiet: no progress bar.

    Raises InputError for a site or layer that the model lacks, and for more features than neurons or tokens.
    Example: `patchclamp read snmf demo --text demo --layer 2 --k 50 --out snmf.json`.
    """
    from patchclamp.data.batches import Selection
    from patchclamp.read.snmf_contexts import contexts_of
    from patchclamp.read.tapped import tap_width

    if to is not None and Path(to).exists():
        raise InputError(f"{to} exists already; choose another folder or remove it first")
    chosen = len(model.layouts["resid"].widths) // 3 if layer is None else layer
    tap_width(model, (site, chosen))
    select = Selection(skip_first=skip_first)
    text = text.limited(max_documents=text.max_documents, max_tokens=max_tokens)
    activations = Activations.live(model, text, site, chosen, select=select, batch_tokens=batch_tokens)
    found = factorise(
        activations,
        k,
        sparsity=sparsity,
        init=init,
        restarts=restarts,
        device=str(model.device),
        seed=seed,
        quiet=quiet,
    )
    arguments = {
        **found.parameters, "layer": chosen, "site": site, "skip_first": skip_first, "max_tokens": max_tokens,
        "contexts": contexts, "batch_tokens": batch_tokens,
    }  # fmt: skip
    made = replace(
        found,
        contexts=contexts_of(found, model, text, (site, chosen), k=contexts, select=select, batch_tokens=batch_tokens),
        provenance=provenance(
            "read.snmf", arguments=arguments, inputs={"model": dict(model.identity), "text": text.identity}, seed=seed
        ),
    )
    if to is not None:
        made.dictionary().save(to)
    return made


def factorise(
    activations: Activations,
    k: int = 100,
    *,
    sparsity: float | None = None,
    init: str = "best",
    restarts: int = 5,
    solver: str = "descent",
    search_iterations: int = SEARCH,
    max_iterations: int = 2000,
    tolerance: float = 1e-6,
    patience: int = 10,
    unit_rows: bool = False,
    rows: int = 4096,
    precision: str | None = None,
    device: str | None = None,
    seed: int = 0,
    quiet: bool = True,
) -> Factors:
    """Minimise |X - G F|^2 over strengths G >= 0 and features F with ceil(sparsity * width) non-zeros each.

    activations: of a tensor, a recording or a running model. They are read in blocks of `rows`, once per
    iteration; up to 1 GiB of them is kept on the device. Memory: strengths (n, k) and a few (k, width) matrices.
    solver: `descent` searches a basin by the published alternation (at most `search_iterations`), then descends exactly,
    the objective never rising; `published` is the alternation alone (at most `max_iterations`), its best state returned.
    tolerance: relative to the sum of squares of X; after `patience` iterations that gain less it has converged.
    unit_rows: bring every token's activations to length 1 first (off in the paper). precision: float32 or float64; by
    default float64 on a CPU and float32 elsewhere, sums always in float64.

    Differs from the reference implementation: exactly ceil(sparsity * width) neurons are kept, of equal ones the
    first (ties keep more there); the SVD start chooses signs; ridge and floor are relative to the scale of the data;
    dead features begin anew from the tokens reproduced worst. Of starts that end equally low (within 0.2 % of the sum
    of squares and 10 % of each other) the one whose features cancel one another least wins: where supports overlap,
    features and their differences reproduce the data alike, and only the former are what the data are made of.
    Features come back with length 1, strongest first.
    Raises InputError for k above the number of neurons or tokens, NaN or infinite activations, and values out of range.
    """
    width = activations.width
    keep = _kept(width, sparsity)
    _check(k, width, init, restarts, solver, search_iterations, max_iterations, tolerance, patience)
    where = torch.device(device or "cpu")
    dtype = _precision(precision, where)
    data = Data(activations, rows, where, dtype, unit_rows, CACHE)
    if k > data.n:
        raise InputError(f"k={k} features asked for, but there are {data.n} tokens; give more text or a smaller k")
    made: list[tuple[State, Convergence]] = []
    tried = []
    trials = _trials(init, restarts)
    with progress("factorising", len(trials), unit="starts", quiet=quiet) as advance:
        for number, how in enumerate(trials):
            state, record = _run(
                data, start(data, k, how, seed + number), keep, solver, search_iterations, max_iterations, tolerance, patience
            )  # fmt: skip
            tried.append(
                {"init": how, "seed": seed + number, "loss": record.losses[-1], "iterations": record.iterations}
            )
            made = _contenders([*made, (state, replace(record, init=how))])
            advance(1)
    best = min(made, key=lambda one: _strength(one[0]))
    parameters = {
        "k": k, "sparsity": keep / width, "keep": keep, "init": init, "restarts": restarts, "solver": solver,
        "search_iterations": search_iterations, "max_iterations": max_iterations, "tolerance": tolerance,
        "patience": patience, "unit_rows": unit_rows, "precision": str(dtype).removeprefix("torch."), "seed": seed,
    }  # fmt: skip
    features, strengths = _ordered(*_of(best[0]))
    return Factors(
        features=features,
        strengths=strengths,
        record=replace(best[1], trials=tuple(tried)),
        parameters=parameters,
        site=activations.site,
        layer=activations.layer,
        model=activations.model or None,
        provenance=provenance(
            "read.factorise", arguments=parameters, inputs={"activations": activations.source}, seed=seed
        ),
    )


def _contenders(made: list[tuple[State, Convergence]]) -> list[tuple[State, Convergence]]:
    """The runs that reproduce the data as well as the best one does, up to a few thousandths."""
    lowest = min(record.losses[-1] for _, record in made)
    limit = max(lowest, min(lowest * 1.1, lowest + TIED * made[0][1].total))
    return [one for one in made if one[1].losses[-1] <= limit]


def _strength(state: State) -> float:
    """Sum over features of |strengths| * |feature|: larger where features cancel one another."""
    lengths = state.features.double().norm(dim=1) * state.strengths.double().norm(dim=0)
    return float(lengths.sum())


def _run(
    data: Data, first: Tensor, keep: int, solver: str, searching: int, iterations: int, tolerance: float, patience: int
) -> tuple[State, Convergence]:
    """One factorisation from given strengths: search, then descent (none for the published solver)."""
    if solver == "published":
        searching, iterations = iterations, 0
        first, raw, _ = search(data, first, keep=keep, iterations=searching, tolerance=tolerance, patience=patience)
    else:
        first, raw, _ = search(data, first, keep=keep, iterations=searching, tolerance=tolerance, patience=searching)
    state = solve(data, first, keep=keep, iterations=iterations, tolerance=tolerance, patience=patience)
    held = np.minimum.accumulate(raw).tolist() if raw else []
    losses = [*[loss for loss in held if loss > state.losses[0]], *state.losses]
    dead = int((state.features == 0).all(1).sum())
    ended = state.converged if solver == "descent" else len(raw) < searching
    return state, Convergence(tuple(losses), data.total, data.n, tuple(raw), ended, dead, state.reseeded)


def _of(state: State) -> tuple[Tensor, Tensor]:
    """Features of length 1 (or 0), and the strengths that give the same product."""
    lengths = state.features.double().norm(dim=1)
    features = state.features.double() / torch.where(lengths > 0, lengths, torch.ones_like(lengths))[:, None]
    return features.float(), (state.strengths * lengths.to(state.strengths.dtype)).float()


def _ordered(features: Tensor, strengths: Tensor) -> tuple[Tensor, Tensor]:
    order = strengths.double().square().sum(0).argsort(descending=True, stable=True)
    return features[order].contiguous(), strengths[:, order].contiguous()


def _trials(init: str, restarts: int) -> list[str]:
    if init == "best":
        return ["svd", "kmeans", *["random"] * restarts]
    return [init] * (max(1, restarts) if init == "random" else 1)


def _kept(width: int, sparsity: float | None) -> int:
    share = (0.01 if width >= WIDE else 0.05) if sparsity is None else sparsity
    if not 0 < share <= 1:
        raise InputError(f"sparsity={sparsity} given; it is the share of neurons in a feature, above 0 and at most 1")
    return max(1, math.ceil(share * width - 1e-9))


def _precision(precision: str | None, device: torch.device) -> torch.dtype:
    known = {"float32": torch.float32, "float64": torch.float64}
    if precision is None:
        return torch.float64 if device.type == "cpu" else torch.float32
    if precision not in known:
        raise InputError(f"precision={precision!r}; choose float32 or float64")
    return known[precision]


def _check(
    k: int,
    width: int,
    init: str,
    restarts: int,
    solver: str,
    searching: int,
    most: int,
    tolerance: float,
    patience: int,
) -> None:
    if not 1 <= k <= width:
        raise InputError(f"k={k} features asked for; it lies between 1 and the number of neurons, {width}")
    if init not in ("best", *STARTS):
        raise InputError(f"init={init!r}; choose best, {', '.join(STARTS)}")
    if solver not in SOLVERS:
        raise InputError(f"solver={solver!r}; choose {' or '.join(SOLVERS)}")
    for name, value, least in (
        ("restarts", restarts, 0), ("search_iterations", searching, 0), ("max_iterations", most, 1), ("patience", patience, 1),
    ):  # fmt: skip
        if value < least:
            raise InputError(f"{name}={value} given; it is at least {least}")
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance={tolerance} given; it lies between 0 and 1")
