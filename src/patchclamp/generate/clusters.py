"""Core neurons of kinds of text, fitted offline, for prompts too short to have a stable core of their own.

Wang et al. 2024 (arXiv 2410.18311), the similarity-guided way: texts are grouped by a label or by k-means over their cores in one
late layer; each group keeps how often every neuron of every layer was in a token's core. A prompt goes to the group whose centre
is nearest to its own core in that layer, and gets that group's most frequent neurons in all layers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.provenance import provenance
from patchclamp.data.corpora import Corpus, corpus
from patchclamp.data.documents import Document
from patchclamp.generate.counting import Counts, most_frequent
from patchclamp.generate.files import load_pair, save_pair
from patchclamp.generate.guides import SITE, Guide
from patchclamp.models.units import Layout, UnitSet, describe, layouts_of
from patchclamp.record import record
from patchclamp.record.statistics.core import Core, core_size

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

FORMAT = "patchclamp.core-clusters/1"
FEWEST, MOST = 4, 10  # clusters that the reference code allows when it chooses their number
ARRAYS = ("counts", "mass", "centres")
LISTS = ("names", "tokens", "documents", "members")
PLAIN = ("model", "layer", "token_share", "vector_share", "by", "name", "provenance")


def fit_clusters(
    model: LanguageModel,
    text: Corpus,
    *,
    by_label: bool = True,
    clusters: int | None = None,
    token_share: float = 0.4,
    vector_share: float = 0.2,
    depth: float = 0.78,
    by: str = "positive",
    seed: int = 0,
    quiet: bool = False,
) -> Clusters:
    """Group texts by what neurons they use, and keep each group's most frequent ones: a guide for `core_sparse`.

    text: labelled text. by_label: a group per label; False: k-means over the documents' cores. clusters: how many groups k-means
    makes; None chooses as the reference code does (of 1 to 10 the largest second difference of the sum of squares, at least 4).
    token_share: of a token's positive neurons in its core. vector_share: of the grouping layer's neurons in a document's core.
    depth: of the grouping layer (layer 25 of 32 in the paper). by: "positive" or "abs". seed: of k-means. The text is read once
    with labels, twice with k-means.

    Differs from the reference code: groups don't contain each other's texts, the same site (what enters the down projection)
    is used for groups, neurons and prompts, and a group holds counts, from which any share can be taken.
    """
    layer = _layer(model, depth)
    asked = {"core": {"alpha": token_share, "beta": vector_share, "by": by}}
    first = record(model, text, sites=(SITE,), statistics=asked, quiet=quiet)
    span = model.layouts[SITE].slice(layer)
    found = {label: first.get("core", label, SITE) for label in text.labels}
    rows = {label: np.flatnonzero(each.document_n > 0) for label, each in found.items()}
    vectors = {label: each.document_sets(rows[label])[:, span] for label, each in found.items()}
    if by_label and clusters is None:
        names, members = list(found), list(vectors.values())
        groups = np.repeat(np.arange(len(names)), [len(rows) for rows in members])
    else:
        flat = np.concatenate(list(vectors.values())).astype(np.float32)
        groups = _k_means(flat, clusters, seed)
        names = [f"cluster {number}" for number in range(int(groups.max()) + 1)]
        members = [flat[groups == number] for number in range(len(names))]
        documents = _documents(text, rows)
        grouped = {
            name: [documents[at] for at in np.flatnonzero(groups == number)] for number, name in enumerate(names)
        }
        again = record(model, corpus(grouped), sites=(SITE,), statistics=asked, quiet=quiet)
        found = {name: again.get("core", name, SITE) for name in names}
    empty = [name for name, each in zip(names, members, strict=True) if not len(each)]
    if empty:
        raise InputError(f"group {empty[0]!r} has no document with a token that counts; give it more text")
    arguments = {"by_label": by_label, "clusters": clusters, "token_share": token_share, "vector_share": vector_share,
                 "depth": depth, "by": by, "seed": seed}  # fmt: skip
    inputs = {"model": dict(model.identity), "text": text.identity}
    source = provenance("generate.fit_clusters", arguments=arguments, inputs=inputs, seed=seed)
    return _clusters(dict(model.identity), names, members, list(found.values()), layer, vector_share, source, groups)


def hot_neurons(
    model: LanguageModel, text: Corpus, *, token_share: float = 0.4, by: str = "positive", quiet: bool = False
) -> Clusters:
    """The neurons that any of these texts uses most, whatever the prompt: a guide to compare with ("hot" neurons).

    All labels are one group; token_share and by as in `fit_clusters`. Text is read once.
    """
    asked = {"core": {"alpha": token_share, "by": by}}
    found = record(model, text, sites=(SITE,), statistics=asked, quiet=quiet)
    parts = [found.get("core", label, SITE) for label in text.labels]
    arguments = {"token_share": token_share, "by": by}
    inputs = {"model": dict(model.identity), "text": text.identity}
    source = provenance("generate.hot_neurons", arguments=arguments, inputs=inputs)
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    layer = _layer(model, 1.0)
    centre = np.ones((1, model.layouts[SITE].widths[layer]), dtype=bool)
    return _clusters(
        dict(model.identity),
        ["all text"],
        [centre],
        [whole],
        layer,
        whole.beta,
        source,
        [0] * len(whole.document_n),
        name="hot",
    )


@dataclass(frozen=True, eq=False)
class Clusters(Guide):
    """Groups of texts and how often their tokens' cores held each neuron; a guide of `core_sparse`.

    names: of the groups. counts: (groups, total) int64, mass: (groups, total) float64, over the site mlp. tokens, documents: of
    each group. members: the group of every document that has tokens, label after label. centres: (groups, width of the grouping
    layer) float32, shares of a group's documents whose core holds the neuron. layer: the grouping layer. token_share,
    vector_share, by: as they were counted with. model: identity.
    """

    model: Mapping[str, Any]
    names: tuple[str, ...]
    counts: NDArray[np.int64]
    mass: NDArray[np.float64]
    centres: NDArray[np.float32]
    tokens: tuple[int, ...]
    documents: tuple[int, ...]
    members: tuple[int, ...]
    layer: int
    token_share: float
    vector_share: float
    by: str
    provenance: Mapping[str, Any]
    name: str = "clusters"

    @property
    def looks_ahead(self) -> bool:  # type: ignore[override]
        """With one group there is nothing to read."""
        return len(self.names) > 1

    @property
    def layout(self) -> Layout:
        return layouts_of(self.model)[SITE]

    def check(self, model: LanguageModel, layers: Sequence[int], *, token_share: float, by: str) -> None:
        UnitSet.of(self.model, []).check_model(model)
        if self.looks_ahead and (token_share, by) != (self.token_share, self.by):
            raise InputError(
                f"token_share={token_share}, by={by!r} given, but these clusters were fitted with "
                f"token_share={self.token_share}, by={self.by!r}; prompts must be counted in the same way"
            )

    def counted(self, layers: Sequence[int]) -> Sequence[int]:
        return (self.layer,) if self.looks_ahead else ()

    def cores(self, layer: int, size: int, width: int, texts: int, counts: Mapping[int, Counts]) -> list[Tensor]:
        groups = self.predict(counts[self.layer]) if self.looks_ahead else [0] * texts
        return [self.core(group, layer, size) for group in groups]

    def core(self, group: int, layer: int, size: int) -> Tensor:
        """The `size` most frequent neurons of a group in a layer, rising int64; fewer where fewer were ever in a core."""
        span = self.layout.slice(layer)
        return most_frequent(
            torch.from_numpy(self.counts[group, span]).double(), torch.from_numpy(self.mass[group, span]), size
        )

    def units(self, group: int | str, share: float) -> UnitSet:
        """A share of every layer's neurons, the most frequent of a group, as a unit set."""
        number = self.names.index(group) if isinstance(group, str) and group in self.names else group
        if not isinstance(number, int) or not 0 <= number < len(self.names):
            raise InputError(f"no group is called {group!r}; there are {', '.join(self.names)}")
        layout = self.layout
        parts = [
            layout.slice(layer).start + self.core(number, layer, core_size(share, width)).numpy()
            for layer, width in enumerate(layout.widths)
        ]
        return UnitSet.at(self.model, SITE, np.concatenate(parts))

    def predict(self, counts: Counts) -> list[int]:
        """The nearest group (Euclidean, as k-means has it) of each text, from its counts in the grouping layer."""
        width = self.centres.shape[1]
        found = []
        for core in counts.cores(core_size(self.vector_share, width)):
            vector = np.zeros(width, dtype=np.float32)
            vector[core.cpu().numpy()] = 1
            found.append(int(np.square(self.centres - vector).sum(1).argmin()))
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.core-clusters/1`: NAME.json, and the arrays beside it as NAME.safetensors."""
        kept = {key: getattr(self, key) for key in (*LISTS, *PLAIN)}
        body = {**kept, "model": dict(self.model), "provenance": dict(self.provenance)}
        return save_pair(path, FORMAT, body, {name: getattr(self, name) for name in ARRAYS})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Clusters:
        """Read what `save` wrote; DamagedError for anything else, or for arrays of another shape."""
        body, arrays = load_pair(path, FORMAT)
        try:
            fields = {key: tuple(body[key]) for key in LISTS} | {key: body[key] for key in PLAIN}
            made: Any = fields | {name: arrays[name] for name in ARRAYS}
            found = cls(**made)
            groups, total = len(found.names), found.layout.total
            width = found.layout.widths[found.layer]
        except (KeyError, TypeError, IndexError) as problem:
            raise DamagedError(f"{path} is not a complete {FORMAT} file: {problem!r}") from problem
        shapes = {"counts": (groups, total), "mass": (groups, total), "centres": (groups, width)}
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise DamagedError(
                    f"{path}: {name} has shape {arrays[name].shape}, but the model it names needs {shape}"
                )
        return found

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {n} texts" for name, n in zip(self.names, self.documents, strict=True))
        return f"Clusters({len(self.names)} of model {describe(self.model)}, layer {self.layer}; {sizes})"


def _clusters(
    model: dict[str, Any],
    names: Sequence[str],
    members: Sequence[NDArray[Any]],
    found: Sequence[Core],
    layer: int,
    vector_share: float,
    source: Mapping[str, Any],
    groups: Sequence[int] | NDArray[np.int64],
    name: str = "clusters",
) -> Clusters:
    return Clusters(
        model=model,
        names=tuple(names),
        counts=np.stack([each.counts.sum(0) for each in found]),
        mass=np.stack([each.mass for each in found]),
        centres=np.stack([np.asarray(rows, dtype=np.float32).mean(0) for rows in members]),
        tokens=tuple(int(each.n.sum()) for each in found),
        documents=tuple(int((each.document_n > 0).sum()) for each in found),
        members=tuple(int(number) for number in groups),
        layer=layer,
        token_share=found[0].alpha,
        vector_share=vector_share,
        by=found[0].by,
        provenance=source,
        name=name,
    )


def _layer(model: LanguageModel, depth: float) -> int:
    if not 0 <= depth <= 1:
        raise InputError(f"depth={depth} given; it is a share of the layers between 0 and 1")
    layout = model.layouts.get(SITE)
    if layout is None:
        raise InputError(f"this {model.anatomy.model_type} model has no MLP neurons to group texts by")
    have = [layer for layer, width in enumerate(layout.widths) if width]
    return min(have, key=lambda layer: abs(layer - min(round(depth * layout.n_layers), layout.n_layers - 1)))


def _k_means(vectors: NDArray[np.float32], clusters: int | None, seed: int) -> NDArray[np.int64]:
    """The group of every vector; groups are numbered by their first member."""
    from sklearn.cluster import KMeans

    different = len(np.unique(vectors, axis=0))
    if clusters is not None and not 1 <= clusters <= different:
        raise InputError(f"clusters={clusters} given, but there are {different} different documents to group")
    most = min(MOST, different)
    if clusters is None and most < FEWEST:
        raise InputError(
            f"{different} different documents given; k-means needs at least {FEWEST}, so give more text or clusters="
        )
    fits = {
        k: KMeans(k, n_init=10, random_state=seed).fit(vectors)
        for k in ([clusters] if clusters else range(1, most + 1))
    }
    chosen = clusters or max(FEWEST, elbow([float(fit.inertia_) for fit in fits.values()]))
    labels = fits[chosen].labels_
    order = {label: number for number, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([order[label] for label in labels.tolist()], dtype=np.int64)


def elbow(squares: Sequence[float]) -> int:
    """The number of clusters at the largest second difference of the within-cluster sums of squares for 1, 2, 3, ... clusters."""
    if len(squares) < 3:
        return len(squares)
    return int(np.argmax(np.diff(squares, 2))) + 2


def _documents(text: Corpus, rows: Mapping[str, NDArray[Any]]) -> list[Document]:
    """The documents of all labels that have tokens, in the order of their vectors."""
    found: list[Document] = []
    for label, wanted in rows.items():
        kept = set(wanted.tolist())
        found += [document for number, document in enumerate(text.documents(label)) if number in kept]
    return found
