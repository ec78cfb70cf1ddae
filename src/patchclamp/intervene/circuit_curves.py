"""Is a circuit enough, is it all, is it lean? Faithfulness, completeness and minimality, against random circuits of its size.

    faithfulness(model, task, circuit)                      # percent of the model's behaviour that the circuit alone keeps
    faithfulness_curve(model, task, edges.top(k=400))       # the same for growing parts of a ranked circuit
    completeness(model, task, circuit)                      # does circuit minus K behave as model minus K?
    minimality(model, task, circuit)                        # what each member adds

Everything outside is ablated: members outside carry the corrupted run's values ("corrupt") or their mean over its tokens
("mean"), in the clean run. 0 is the model with every member ablated, 100 the whole model. Sources: Wang et al. 2022
(arXiv:2211.00593, section 4), Hanna et al. 2024 (arXiv:2403.17806), Miller, Chughtai & Saunders 2024 (arXiv:2407.08734).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.data.paired import PairedTask, Pairs
from patchclamp.intervene.circuits import Circuit
from patchclamp.intervene.edge_graph import edge_graph
from patchclamp.intervene.edge_runs import run_masks
from patchclamp.intervene.patched_rows import Part, Patch, PatchedRows, parts_of
from patchclamp.intervene.patching import fitting, length_sorted
from patchclamp.intervene.path_patching import encoded
from patchclamp.intervene.path_runs import Recorded
from patchclamp.models.hooks import Tap

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

ABLATIONS = ("corrupt", "mean")
Floats = NDArray[np.float64]


def kept_runs(
    model: LanguageModel,
    task: PairedTask | Pairs,
    kept: Sequence[Iterable[str]],
    *,
    edges: bool,
    mlps: bool = False,
    ablation: str = "corrupt",
    batch_size: int = 16,
) -> Floats:
    """(n_sets, n) logit differences of the clean run in which only the members of each set are left as they are.

    edges: members are edges "sender->receiver"; else they are heads, and MLPs too where `mlps` (otherwise all MLPs are kept).
    InputError for a member that the model hasn't.
    """
    if ablation not in ABLATIONS:
        raise InputError(f"ablation={ablation!r} given; it is one of {', '.join(ABLATIONS)}")
    pairs = encoded(model, task)
    if edges:
        graph = edge_graph(model)
        masks = graph.valid.repeat(len(kept), 1, 1)
        for number, members in enumerate(kept):
            for member in members:
                masks[number][graph.edge(*_ends(member))] = False
        return run_masks(model, pairs, masks, batch_size=batch_size, mean=ablation == "mean")
    return _node_runs(model, pairs, [set(members) for members in kept], mlps, ablation, batch_size)


@dataclass(frozen=True, eq=False)
class Kept:
    """What is left when only parts of a model are left: (n_sets, n) logit differences, beside the whole and the empty model."""

    left: Floats
    whole: Floats
    empty: Floats

    @property
    def gap(self) -> float:
        """Mean logit difference of the whole model minus that with every member ablated."""
        return float((self.whole - self.empty).mean())

    @property
    def percent(self) -> Floats:
        """(n_sets,) 0 where everything is ablated, 100 for the whole model; NaN where these two don't differ."""
        if abs(self.gap) <= 1e-6 * max(float(np.abs(self.whole).mean()), 1e-12):
            return np.full(len(self.left), np.nan)
        return 100 * (self.left - self.empty).mean(1) / self.gap

    def intervals(self, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Floats:
        """(n_sets, 2) percentile bootstrap interval of `percent` over pairs."""
        rng = np.random.default_rng(seed)
        n = len(self.whole)
        draws = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = 100 * (draws @ (self.left - self.empty).T) / (draws @ (self.whole - self.empty))[:, None]
        drawn[~np.isfinite(drawn)] = np.nan
        if np.isnan(drawn).all():
            return np.full((len(self.left), 2), np.nan)
        found: Floats = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0).T
        return found


def kept(
    model: LanguageModel,
    task: PairedTask | Pairs,
    circuit: Circuit,
    sets: Sequence[Iterable[str]],
    *,
    ablation: str = "corrupt",
    batch_size: int = 16,
) -> Kept:
    """Runs with only each set left, where sets are drawn from all members of the circuit's kind."""
    universe = members_of(model, circuit)
    everything = [universe, ()]
    how: dict[str, Any] = {"edges": circuit.is_edges, "mlps": _with_mlps(model, circuit)}
    found = kept_runs(model, task, [*everything, *sets], **how, ablation=ablation, batch_size=batch_size)
    return Kept(found[2:], found[0], found[1])


def members_of(model: LanguageModel, circuit: Circuit) -> tuple[str, ...]:
    """All members that a circuit of this kind could have: every edge, every head, or every head and MLP."""
    if circuit.is_edges:
        return tuple(f"{sender}->{receiver}" for sender, receiver in edge_graph(model).edges())
    found = [part.name for part in parts_of(model, "head")]
    if _with_mlps(model, circuit):
        found += [_mlp_name(part) for part in parts_of(model, "mlp_out")]
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How much of the model's behaviour parts of a circuit keep, and random circuits of the same size.

    rows: size, percent, low, high, without (percent of the model without that part), control, control_low, control_high, p (share
    of random circuits that keep at least as much, counting the circuit itself).
    """

    rows: tuple[Mapping[str, float], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def chart(self) -> Any:
        """Altair lines: percent kept by size, with its interval, and the band of random circuits."""
        import altair as alt

        values = [{key: float(value) for key, value in row.items()} for row in self.rows]
        base = alt.Chart(alt.Data(values=values))
        x = alt.X("size:Q", title="members kept")
        controls = base.mark_area(opacity=0.2, color="#57534e").encode(x=x, y="control_low:Q", y2="control_high:Q")
        band = base.mark_area(opacity=0.2, color="#c2410c").encode(x=x, y="low:Q", y2="high:Q")
        line = base.mark_line(point=True, color="#c2410c").encode(
            x=x,
            y=alt.Y("percent:Q", title="% of the behaviour kept"),
            tooltip=["size:Q", "percent:Q", "control:Q", "p:Q"],
        )
        return alt.layer(controls, band, line).properties(
            title="circuit (orange) and random circuits (grey)", width=320
        )

    def table(self) -> Any:
        """A rich table of the rows."""
        from rich.table import Table

        drawn = Table(header_style="bold")
        for name in ("members", "% kept", "95% interval", "% without", "random", "p"):
            drawn.add_column(name, justify="right")
        for row in self.rows:
            drawn.add_row(
                f"{row['size']:.0f}", f"{row['percent']:.1f}", f"{row['low']:.1f} to {row['high']:.1f}",
                f"{row['without']:.1f}", f"{row['control']:.1f}", f"{row['p']:.3g}",
            )  # fmt: skip
        return drawn


def faithfulness(
    model: LanguageModel, task: PairedTask | Pairs, circuit: Circuit, *, controls: int = 20, **how: Any
) -> Mapping[str, float]:
    """The row of `faithfulness_curve` for the whole circuit."""
    return faithfulness_curve(model, task, circuit, sizes=[len(circuit)], controls=controls, **how).rows[0]


def faithfulness_curve(
    model: LanguageModel,
    task: PairedTask | Pairs,
    circuit: Circuit,
    *,
    sizes: Sequence[int] | None = None,
    controls: int = 10,
    ablation: str = "corrupt",
    seed: int = 0,
    batch_size: int = 16,
) -> Faithfulness:
    """Percent of the behaviour kept by the first `size` members, members in order of |score| (as listed without scores).

    sizes: by default 1, 2, 4, ... up to the whole circuit. controls: random circuits per size: nodes with as many members in
    every layer, edges anywhere. "without" is the model with that part ablated and everything else left: near 0 where the
    part is all that matters. InputError for sizes that the circuit hasn't.
    """
    ranked = sorted(circuit.members, key=lambda member: -abs(circuit.scores.get(member, 0.0)))
    doubling = [2**power for power in range(len(ranked).bit_length()) if 2**power < len(ranked)]
    wanted = [*doubling, len(ranked)] if sizes is None else [int(size) for size in sizes]
    if bad := [size for size in wanted if not 0 <= size <= len(ranked)]:
        raise InputError(f"size {bad[0]} asked for; the circuit has {len(ranked)} members")
    universe, rng = members_of(model, circuit), np.random.default_rng(seed)
    sets: list[list[str]] = []
    for size in wanted:
        part = ranked[:size]
        sets += [part, [member for member in universe if member not in set(part)]]
        sets += [random_like(part, universe, rng) for _ in range(controls)]
    found = kept(model, task, circuit, sets, ablation=ablation, batch_size=batch_size)
    percent, bounds = found.percent, found.intervals(seed=seed)
    rows, each = [], 2 + controls
    for number, size in enumerate(wanted):
        mine = percent[number * each : (number + 1) * each]
        others = mine[2:]
        rows.append(
            {
                "size": float(size), "percent": float(mine[0]), "low": float(bounds[number * each, 0]),
                "high": float(bounds[number * each, 1]), "without": float(mine[1]),
                "control": float(others.mean()) if controls else np.nan,
                "control_low": float(others.min()) if controls else np.nan,
                "control_high": float(others.max()) if controls else np.nan,
                "p": float(((others >= mine[0]).sum() + 1) / (controls + 1)),
            }
        )  # fmt: skip
    return Faithfulness(tuple(rows), {"ablation": ablation, "controls": controls, "seed": seed, "name": circuit.name})


def completeness(
    model: LanguageModel,
    task: PairedTask | Pairs,
    circuit: Circuit,
    *,
    subsets: int = 10,
    ablation: str = "corrupt",
    seed: int = 0,
    batch_size: int = 16,
) -> list[dict[str, float]]:
    """Rows of K: size, circuit (percent kept by circuit minus K), model (by model minus K), difference of the two.

    K is empty, then the whole circuit, then random subsets of half of its members. A complete circuit loses what the model
    loses: differences near 0. A large difference for the whole circuit says that something outside serves as a backup.
    """
    rng, universe, members = np.random.default_rng(seed), members_of(model, circuit), list(circuit.members)
    half = max(1, len(members) // 2)
    drawn = [set(rng.choice(members, size=half, replace=False).tolist()) for _ in range(subsets)] if members else []
    gone: list[set[str]] = [set(), set(members), *drawn]
    sets = [[m for m in members if m not in k] for k in gone] + [[m for m in universe if m not in k] for k in gone]
    percent = kept(model, task, circuit, sets, ablation=ablation, batch_size=batch_size).percent
    mine, whole = percent[: len(gone)], percent[len(gone) :]
    return [
        {"size": float(len(k)), "circuit": float(a), "model": float(b), "difference": float(b - a)}
        for k, a, b in zip(gone, mine, whole, strict=True)
    ]


def minimality(
    model: LanguageModel,
    task: PairedTask | Pairs,
    circuit: Circuit,
    *,
    ablation: str = "corrupt",
    seed: int = 0,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Rows, one per member, smallest first: member, loss (percent of the behaviour lost without it), low, high.

    A member whose interval holds 0 could be left out, as far as these pairs tell.
    """
    members = list(circuit.members)
    sets = [members, *([other for other in members if other != member] for member in members)]
    found = kept(model, task, circuit, sets, ablation=ablation, batch_size=batch_size)
    losses = Kept(found.left[:1] - found.left[1:] + found.empty, found.whole, found.empty)
    percent, bounds = losses.percent, losses.intervals(seed=seed)
    rows = [
        {"member": member, "loss": float(percent[i]), "low": float(bounds[i, 0]), "high": float(bounds[i, 1])}
        for i, member in enumerate(members)
    ]
    return sorted(rows, key=lambda row: float(row["loss"]))


def random_like(part: Sequence[str], universe: Sequence[str], rng: np.random.Generator) -> list[str]:
    """As many random members: nodes of the same kinds and layers, or edges anywhere."""
    if any("->" in member for member in universe):
        return [universe[i] for i in rng.choice(len(universe), size=len(part), replace=False).tolist()]
    found: list[str] = []
    for place in dict.fromkeys(_place(member) for member in part):
        pool = [member for member in universe if _place(member) == place]
        count = sum(_place(member) == place for member in part)
        found += [pool[i] for i in rng.choice(len(pool), size=count, replace=False).tolist()]
    return found


def _place(member: str) -> tuple[str, ...]:
    return tuple(member.split(".")[:2])


def _ends(member: str) -> tuple[str, str]:
    sender, arrow, receiver = member.partition("->")
    if not arrow:
        raise InputError(f"{member!r} is no edge; an edge is written sender->receiver, such as head.0.1->mlp.3")
    return sender, receiver


def _with_mlps(model: LanguageModel, circuit: Circuit) -> bool:
    return not circuit.is_edges and circuit.total > model.layouts["head"].total


def _mlp_name(part: Part) -> str:
    return f"mlp.{part.layer}"


def _node_runs(
    model: LanguageModel, pairs: Pairs, sets: Sequence[set[str]], mlps: bool, ablation: str, batch_size: int
) -> Floats:
    named = {part.name: part for part in parts_of(model, "head")}
    if mlps:
        named |= {_mlp_name(part): part for part in parts_of(model, "mlp_out")}
    if unknown := [member for members in sets for member in members if member not in named]:
        raise InputError(
            f"{unknown[0]!r} is no head{' or MLP' if mlps else ''} of this model; such as {next(iter(named))}"
        )
    taps = list(dict.fromkeys(part.tap for part in named.values()))
    means = _means(model, pairs, taps, batch_size) if ablation == "mean" else None
    found = np.zeros((len(sets), len(pairs)))
    for batch, index in length_sorted(pairs, fitting(model, batch_size, 1)[0]):
        values = None
        if means is not None:
            values = {tap: means[tap].expand(*batch.clean.shape, -1) for tap in taps}
        work = PatchedRows(model, batch, taps, tokens=fitting(model, 1, 8192)[1], values=values)
        rows = [[Patch(part, batch.mask) for name, part in named.items() if name not in members] for members in sets]
        found[:, index] = work.differences(rows).numpy()
    return found


def _means(model: LanguageModel, pairs: Pairs, taps: Sequence[Tap], batch_size: int) -> dict[Tap, Tensor]:
    """tap -> (width,) mean over all tokens of the corrupted prompts."""
    sums: dict[Tap, Tensor] = {}
    for batch, _ in length_sorted(pairs, fitting(model, batch_size, 1)[0]):
        real = batch.mask.reshape(-1)
        for tap, values in Recorded(model, batch.corrupt, batch.mask, taps).values.items():
            rows = values[real.to(values.device)].double().sum(0)
            sums[tap] = rows if tap not in sums else sums[tap] + rows
    return {tap: (total / int(pairs.mask.sum())).float() for tap, total in sums.items()}
