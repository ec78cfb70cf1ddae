"""Score a pool by how much the features that fire in a sample overlap with those that fire in the target samples (MONA).

Ma, Shang, Chen et al. 2025, "Task-Specific Data Selection for Instruction Tuning via Monosemantic Neuronal Activations"
(arXiv 2503.15573): profile of a sample = mean over tokens of its sparse features, prototype = mean of the target's
profiles, score = generalised Jaccard similarity of the two. `neurons` is the paper's ablation without a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.train.profiles import POOLINGS, Block, Profiler
from patchclamp.train.samples import Samples
from patchclamp.train.selections import Scores, selections
from patchclamp.train.similarity import METRICS, jaccard_shares

if TYPE_CHECKING:
    from patchclamp.models.features import Dictionary
    from patchclamp.models.load import LanguageModel

PAPER_TOP = 192  # features kept per token, of 131,072
AGAINST = ("prototype", "nearest")
NAMED = 10  # features of the prototype that a result names


@selections.add("features")
def features(
    pool: Samples,
    target: Samples,
    *,
    model: LanguageModel,
    dictionary: Dictionary | None = None,
    top: int | None = None,
    metric: str = "jaccard",
    pooling: str = "mean",
    against: str = "prototype",
    common: float | None = None,
    clip: bool = False,
    special: bool = False,
    max_length: int | None = None,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Scores:
    """Overlap of a sample's dictionary features with the target's: monosemantic data selection (arXiv 2503.15573).

    dictionary: a sparse autoencoder or another dictionary of the model. top: keep the k largest features of each token,
    where the dictionary doesn't do so itself. metric: jaccard (the paper's), cosine or euclidean. pooling: of a sample's
    tokens, mean (the paper's) or sum, which selects by length. against: the target's mean profile (prototype), or the
    target sample that is nearest. common: leave out features that fire in more than this share of the pool, such as 0.9,
    which stand for format rather than content. clip: raise negative features to 0 (an error otherwise). special: count
    BOS and the like. max_length: tokens read of a sample; by default the model's length, at most 2048. batch_tokens: tokens
    in a forward pass.

    The paper reads the penultimate layer, and keeps 192 features of 131,072 per token.
    Example: `patchclamp select features demo --dictionary sae/ --pool all=pool.jsonl --target t=target.txt --budget 0.05`.
    """
    if dictionary is None:
        raise InputError("features of what? give dictionary= (--dictionary), or select by 'neurons', which needs none")
    profiler = Profiler(
        model,
        dictionary.site,
        dictionary.layer,
        dictionary,
        top,
        pooling,
        clip,
        special,
        max_length,
        batch_tokens,
        quiet,
    )
    return scored(profiler, pool, target, metric, against, common)


@selections.add("neurons")
def neurons(
    pool: Samples,
    target: Samples,
    *,
    model: LanguageModel,
    site: str | None = None,
    layer: int | None = None,
    top: int | None = None,
    metric: str = "jaccard",
    pooling: str = "mean",
    against: str = "prototype",
    special: bool = False,
    max_length: int | None = None,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Scores:
    """Overlap of a sample's neurons with the target's, without a dictionary: the paper's ablation for polysemy.

    site: whose units; gate (the activation function's output) where the model has it, else mlp. layer: penultimate by
    default. top: keep the k largest activations of each token; 192 by default, or all units if there are fewer. Negative
    activations count as 0. metric, pooling, against, special, max_length, batch_tokens: as for `features`.

    Example: `patchclamp select neurons demo --pool all=pool.jsonl --target t=target.txt --budget 0.05`.
    """
    where = site or ("gate" if "gate" in model.layouts else "mlp")
    depth = penultimate(model) if layer is None else layer
    model.anatomy.site(where, depth)
    kept = min(PAPER_TOP, model.layouts[where].widths[depth]) if top is None else top
    profiler = Profiler(model, where, depth, None, kept, pooling, True, special, max_length, batch_tokens, quiet)
    return scored(profiler, pool, target, metric, against, None)


def penultimate(model: Any) -> int:
    """The layer that the paper reads: the last but one."""
    return max(0, int(model.anatomy.n_layers) - 2)


def scored(
    profiler: Profiler, pool: Samples, target: Samples, metric: str, against: str, common: float | None
) -> Scores:
    """Similarity of every pool sample's profile with the target's."""
    if metric not in METRICS:
        raise InputError(f"metric {metric!r} given; it is one of {', '.join(METRICS)}")
    if against not in AGAINST:
        raise InputError(f"against={against!r} given; it is one of {', '.join(AGAINST)}")
    wanted = Target.of(profiler, target, against)
    mask = None if common is None else _rare(profiler, pool, common)
    numbers: list[Tensor] = []
    values: list[Tensor] = []
    for block in profiler.over(pool, "pool"):
        numbers.append(block.document)
        values.append(_nearest(block, wanted, metric, mask))
    size = sum(1 for _ in pool)
    lowest = min((float(value.min()) for value in values), default=0.0)
    found = np.full(size, 0.0 if metric == "jaccard" else min(0.0, lowest))
    if numbers:
        found[torch.cat(numbers).numpy()] = torch.cat(values).numpy()
    missing = size - sum(len(some) for some in numbers)
    notes = [f"{missing} pool samples have no token that counts and score lowest"] if missing else []
    strongest = np.argsort(-wanted.prototype.numpy(), kind="stable")[:NAMED]
    details = {
        "site": profiler.site if profiler.dictionary is None else profiler.dictionary.name,
        "layer": profiler.layer,
        "width": profiler.width,
        "active": int((wanted.prototype != 0).sum()),
        "target_samples": wanted.count,
        "left_out": 0 if mask is None else int((~mask).sum()),
        "strongest": profiler.names(strongest.tolist()),
    }
    return Scores(found, notes, details)


@dataclass(frozen=True, eq=False)
class Target:
    """The target's profiles. prototype: (width,) float32, their mean. each: (m, width), the profiles to be near to (the
    prototype alone, unless the nearest counts). count: samples with a profile."""

    prototype: Tensor
    each: Tensor
    count: int

    @classmethod
    def of(cls, profiler: Profiler, target: Samples, against: str = "prototype") -> Target:
        """InputError if no target sample has a token that counts."""
        if against == "prototype":
            prototype, count = profiler.mean(target)
            each = prototype[None]
        else:
            blocks = list(profiler.over(target, "target"))
            order = torch.cat([block.document for block in blocks]).argsort() if blocks else torch.zeros(0).long()
            each = torch.cat([block.z.cpu() for block in blocks])[order] if blocks else torch.zeros(0, profiler.width)
            count = len(each)
            prototype = each.mean(0) if count else torch.zeros(profiler.width)
        if not count:
            raise InputError("no target sample has a token that counts; give text that isn't empty")
        return cls(prototype, each, count)


def overlaps(profiler: Profiler, samples: Samples, target: Samples, k: int = 10) -> list[dict[str, Any]]:
    """What the Jaccard similarity of samples with the target's prototype comes from: the k features that add most.

    Rows {"unit", "share", "samples", "target"}: name, what it adds to the mean similarity, and its mean activity in both.
    Over all features the shares add up to the mean similarity.
    """
    wanted = Target.of(profiler, target)
    shares, activity, count = np.zeros(profiler.width), np.zeros(profiler.width), 0
    for block in profiler.over(samples, "samples"):
        shares += jaccard_shares(block.z, wanted.prototype.to(block.z.device)).sum(0).cpu().numpy()
        activity += block.z.sum(0, dtype=torch.float64).cpu().numpy()
        count += len(block.document)
    best = np.argsort(-shares, kind="stable")[:k].tolist()
    return [
        {
            "unit": name,
            "share": float(shares[at] / max(1, count)),
            "samples": float(activity[at] / max(1, count)),
            "target": float(wanted.prototype[at]),
        }
        for at, name in zip(best, profiler.names(best), strict=True)
    ]


def compared(
    profiler: Profiler, pool: Samples, targets: Mapping[str, Samples]
) -> dict[tuple[str, str, str], NDArray[np.float64]]:
    """(target, metric, pooling) -> (n,) scores of the pool, for all metrics and poolings, from one pass over the pool.

    As `features` gives them one at a time, with prototypes; samples without a token score lowest. Needs features of at least
    0. profiler: with pooling="mean", from which the sum follows.
    """
    each: dict[str, dict[str, Tensor]] = {}
    for name, samples in targets.items():
        sums = torch.zeros(profiler.width)
        means = torch.zeros(profiler.width)
        count = 0
        for block in profiler.over(samples, name):
            means += block.z.sum(0).cpu()
            sums += (block.z.cpu() * block.tokens[:, None].cpu()).sum(0)
            count += len(block.document)
        each[name] = {"mean": means / max(1, count), "sum": sums / max(1, count)}
    size = sum(1 for _ in pool)
    found = {(name, metric, way): np.full(size, -np.inf) for name in targets for metric in METRICS for way in POOLINGS}
    for block in profiler.over(pool, "pool"):
        numbers = block.document.cpu().numpy()
        for way in POOLINGS:
            z = block.z if way == "mean" else block.z * block.tokens[:, None].to(block.z.device)
            for name in targets:
                for metric, function in METRICS.items():
                    found[name, metric, way][numbers] = function(z, each[name][way].to(z.device)).cpu().numpy()
    return found


def _nearest(block: Block, target: Target, metric: str, mask: Tensor | None) -> Tensor:
    """(n,) float64 on the CPU: similarity with the nearest of the target's profiles."""
    z = block.z if mask is None else block.z[:, mask.to(block.z.device)]
    each = (target.each if mask is None else target.each[:, mask]).to(z.device)
    best = METRICS[metric](z, each[0])
    for profile in each[1:]:
        best = torch.maximum(best, METRICS[metric](z, profile))
    return best.cpu()


def _rare(profiler: Profiler, pool: Samples, common: float) -> Tensor:
    """(width,) bool: features that fire in at most this share of the pool's samples."""
    if not 0 < common <= 1:
        raise InputError(f"common={common} given; it is a share of the pool, above 0 and at most 1")
    fired, count = torch.zeros(profiler.width, dtype=torch.int64), 0
    for block in profiler.over(pool, "pool (how common)"):
        fired += (block.z > 0).sum(0).cpu()
        count += len(block.document)
    kept: NDArray[np.bool_] = fired.numpy() <= common * max(1, count)
    if not kept.any():
        raise InputError(f"every feature fires in more than {common:.0%} of the pool; give a higher share")
    return torch.from_numpy(kept)
