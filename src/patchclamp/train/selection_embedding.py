"""Score a pool by the cosine of mean hidden states with the target's: dense retrieval with the model's own states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchclamp.train.profiles import Profiler
from patchclamp.train.samples import Samples
from patchclamp.train.selection_features import penultimate, scored
from patchclamp.train.selections import Scores, selections

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


@selections.add("embedding")
def embedding(
    pool: Samples,
    target: Samples,
    *,
    model: LanguageModel,
    site: str = "resid",
    layer: int | None = None,
    metric: str = "cosine",
    against: str = "prototype",
    special: bool = False,
    max_length: int | None = None,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Scores:
    """Cosine of a sample's mean hidden state with the target's: the dense baseline, from the model itself.

    site: whose values are averaged over a sample's tokens. layer: the last but one by default. metric: cosine or
    euclidean. against: the target's mean (prototype) or the nearest target sample. special: count BOS and the like.
    max_length: tokens read of a sample. batch_tokens: tokens in a forward pass.

    Example: `patchclamp select embedding demo --pool all=pool.jsonl --target t=target.txt --budget 0.05`.
    """
    depth = penultimate(model) if layer is None else layer
    profiler = Profiler(model, site, depth, None, None, "mean", False, special, max_length, batch_tokens, quiet)
    return scored(profiler, pool, target, metric, against, None)
