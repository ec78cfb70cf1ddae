"""What is recorded, as plain data, and how one shard of it is computed: the same function in this process and in any worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from patchclamp.core.errors import Error, ModelError
from patchclamp.core.memory import kept_memory
from patchclamp.data.batches import Budget, batches, is_out_of_memory
from patchclamp.models.fast_passes import fast_passes
from patchclamp.models.hooks import Tap, observe, run
from patchclamp.models.units import Layout
from patchclamp.record.collector import Collector, NotFiniteError
from patchclamp.record.statistics import Statistic, statistics
from patchclamp.record.statistics.base import State

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.shards import Shard

States = dict[str, State]  # "site/statistic" -> its arrays


@dataclass(frozen=True)
class Job:
    """Which statistics of which layers of which sites, in batches of how many tokens."""

    sites: tuple[str, ...]
    layers: Mapping[str, tuple[int, ...]]  # site -> layers recorded
    statistics: Mapping[str, Mapping[str, Any]]  # name -> arguments
    folds: int
    batch_tokens: int
    gated: tuple[int, ...] = ()  # layers where the firing of site mlp is read at the gate

    @property
    def taps(self) -> list[Tap]:
        """Every place that must be watched, once."""
        return list(
            dict.fromkeys(tap for site in self.sites for name in self.statistics for tap in self._watched(site, name))
        )

    def _watched(self, site: str, statistic: str) -> list[Tap]:
        return [self.tap(site, statistic, layer) for layer in self.layers[site]]

    def tap(self, site: str, statistic: str, layer: int) -> Tap:
        """Where a statistic of a site is read in one layer."""
        at_gate = statistic == "firing" and site == "mlp" and layer in self.gated
        return ("gate" if at_gate else site, layer)

    @property
    def last_tap(self) -> Tap | None:
        """The tap after which nothing needs to be computed."""
        top = max(layer for _, layer in self.taps)
        there = {site for site, layer in self.taps if layer == top}
        if there <= {"pre", "gate", "up", "mlp"} and "mlp" in there:
            return ("mlp", top)  # the others have been seen when their product is
        return (there.pop(), top) if len(there) == 1 else ("resid", top)

    def fresh(self, layouts: Mapping[str, Layout]) -> dict[str, dict[str, Statistic]]:
        """Empty statistics: site -> name -> statistic."""
        return {
            site: {
                name: statistics[name](layouts[site], layers=self.layers[site], folds=self.folds, **arguments)
                for name, arguments in self.statistics.items()
            }
            for site in self.sites
        }


def run_shard(
    model: LanguageModel, job: Job, shard: Shard, budget: Budget, advance: Callable[[float], None] = lambda amount: None
) -> States:
    """The closed statistics of one shard. budget: shrinks where a device runs out of memory; the shard is then begun anew.

    Raises ModelError where an activation is NaN or infinite, naming site, layer and document; Error where one sequence is too
    large for the memory.
    """
    while True:
        used = min(budget.tokens, job.batch_tokens)
        try:
            return _collected(model, job, shard, used, advance)
        except NotFiniteError as problem:
            raise _named(model, job, shard, used, problem) from problem
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            longest = max(len(piece.ids) for piece in shard.pieces)
            if used < 2 * longest:
                raise Error(
                    f"out of memory with a batch of {max(used, longest)} tokens (label {shard.label!r}); "
                    "give a smaller max_length"
                ) from problem
        budget.shrink(used)


@kept_memory()
@torch.inference_mode()
def _collected(
    model: LanguageModel,
    job: Job,
    shard: Shard,
    tokens: int,
    advance: Callable[[float], None],
    *,
    careful: bool = False,
) -> States:
    layouts = model.layouts
    members = job.fresh(layouts)
    by_tap: dict[Tap, list[Statistic]] = {tap: [] for tap in job.taps}
    for site, named in members.items():
        for name, statistic in named.items():
            for layer in job.layers[site]:
                by_tap[job.tap(site, name, layer)].append(statistic)
    collector = Collector(layouts, by_tap, folds=job.folds, careful=careful)
    with fast_passes(model), observe(model, job.taps, collector.see):
        for batch in batches(shard.pieces, token_budget=tokens, pad_id=model.pad_id):
            collector.begin(batch)
            mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
            run(model, batch.input_ids, mask, stop_after=job.last_tap)
            collector.end()
            advance(int(batch.keep.sum()))
        collector.finish()
    if shard.tokens:
        _check_seen(layouts, job, collector)
    for named in members.values():
        for statistic in named.values():
            statistic.close(range(shard.first, shard.stop))
    return {f"{site}/{name}": statistic.state() for site, named in members.items() for name, statistic in named.items()}


def _check_seen(layouts: Mapping[str, Layout], job: Job, collector: Collector) -> None:
    """A tap that nothing flowed through would leave zeros that look like silence."""
    missing = [(site, layer) for site, layer in job.taps if not layouts[site].experts[layer]]
    missing = [tap for tap in missing if tap not in collector.seen]
    if missing:
        site, layer = missing[0]
        more = f" and {len(missing) - 1} more places" if len(missing) > 1 else ""
        raise ModelError(f"nothing flowed through site {site} of layer {layer}{more}; it can't be recorded")


def _named(model: LanguageModel, job: Job, shard: Shard, tokens: int, problem: NotFiniteError) -> ModelError:
    """The error with its place, found by going through the shard again and looking after every tap."""
    place = str(problem)
    try:
        _collected(model, job, shard, tokens, lambda amount: None, careful=True)
    except NotFiniteError as found:
        place = str(found)
    return ModelError(
        f"a NaN or infinite activation: {place} of label {shard.label!r}; "
        "check the weights, or load the model in float32 or bfloat16"
    )
