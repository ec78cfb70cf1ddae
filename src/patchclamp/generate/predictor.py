"""A small network per layer that guesses which neurons a token will use before the MLP runs: what core neurons do without.

Liu et al. 2023 (DejaVu, arXiv 2310.17157) have two linear maps per layer from the state that enters the MLP to one logit per
neuron, trained with binary cross-entropy on whether the neuron is among the strongest. Here the reading is ours: its paper's
widths and training schedule were not available; the nonlinearity between the maps is a ReLU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import Selection, batches, encode, fitting_batch
from patchclamp.data.corpora import Corpus
from patchclamp.generate.files import load_pair, save_pair
from patchclamp.generate.guides import Guide, size_of
from patchclamp.generate.maps import MlpMaps, layers_of, mlp_maps
from patchclamp.models.hooks import forward_replaced
from patchclamp.models.units import UnitSet
from patchclamp.record.statistics.core import check_share, strongest

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

FORMAT = "patchclamp.neuron-predictor/1"
PARTS = ("mean", "scale", "first", "offset", "second", "bias")
Parts = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Predictor(Guide):
    """A guide that chooses for every token by a small network per layer.

    parts: layer -> tensors: mean, scale (d_model,) of what enters; first (hidden, d_model), offset (hidden,); second (neurons,
    hidden), bias (neurons,), all float32. share: of neurons it was trained on. recall: layer -> share of the true strongest
    neurons among its own, on the last text it was trained on.
    """

    model: Mapping[str, Any]
    parts: Mapping[int, Parts]
    share: float
    recall: Mapping[int, float]
    provenance: Mapping[str, Any]
    name: str = "predictor"
    per_token: bool = True

    def check(self, model: LanguageModel, layers: Sequence[int], *, token_share: float, by: str) -> None:
        UnitSet.of(self.model, []).check_model(model)
        missing = [layer for layer in layers if layer not in self.parts]
        if missing:
            raise InputError(
                f"the predictor knows the layers {', '.join(map(str, self.parts))}, not layer {missing[0]}"
            )

    def mask(self, layer: int, x: Tensor, h: Tensor, size: int) -> Tensor:
        logits = scores({name: part.to(x.device) for name, part in self.parts[layer].items()}, x)
        flat = logits.reshape(-1, h.shape[-1])
        return strongest(flat, torch.full((len(flat),), size, dtype=torch.int64, device=h.device)).view(h.shape)

    @property
    def bytes(self) -> int:
        """Of all its weights."""
        return sum(part.numel() * part.element_size() for parts in self.parts.values() for part in parts.values())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.neuron-predictor/1`: NAME.json, and the weights beside it as NAME.safetensors."""
        body = {
            "model": dict(self.model),
            "share": self.share,
            "recall": dict(self.recall),
            "provenance": dict(self.provenance),
        }
        arrays = {
            f"{layer}.{name}": part.numpy() for layer, parts in self.parts.items() for name, part in parts.items()
        }
        return save_pair(path, FORMAT, body, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictor:
        """Read what `save` wrote; DamagedError for anything else."""
        body, arrays = load_pair(path, FORMAT)
        try:
            layers = sorted(int(layer) for layer in body["recall"])
            parts = {layer: {name: torch.from_numpy(arrays[f"{layer}.{name}"]) for name in PARTS} for layer in layers}
            recall = {layer: float(body["recall"][str(layer)]) for layer in layers}
            return cls(body["model"], parts, float(body["share"]), recall, body["provenance"])
        except (KeyError, TypeError, ValueError) as problem:
            raise DamagedError(f"{path} is not a complete {FORMAT} file: {problem!r}") from problem

    def __repr__(self) -> str:
        mean = sum(self.recall.values()) / len(self.recall)
        return f"Predictor({len(self.parts)} layers, {self.bytes / 1e6:.1f} MB, recall {mean:.2f} at {self.share:.0%})"


def fit_predictor(
    model: LanguageModel,
    text: Corpus,
    *,
    share: float = 0.2,
    hidden: int | None = None,
    epochs: int = 3,
    rate: float = 2e-3,
    layers: Sequence[float] | Sequence[int] = (0.1, 1.0),
    batch_tokens: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Predictor:
    """Train a network per layer to say which neurons are a token's strongest; a guide for `core_sparse`.

    share: how many neurons of a layer count as strongest, by the size of their activation. hidden: width between its two maps
    (default: a quarter of d_model, at least 16). epochs: how often the text is read. rate: of Adam, falling to 0. layers: as in
    `core_sparse`. batch_tokens: positions per batch. seed: of the first weights and the order of batches. Every batch is one step
    for every layer, so no activations are kept.
    """
    for name, value in (("epochs", epochs), ("hidden", 1 if hidden is None else hidden)):
        if value < 1:
            raise InputError(f"{name}={value} given; it is at least 1")
    check_share("share", share)
    chosen = layers_of(model.anatomy.n_layers, layers)
    maps = mlp_maps(model, chosen)
    width = hidden or max(16, model.anatomy.d_model // 4)
    generator = torch.Generator().manual_seed(seed)
    pieces = [
        piece
        for label in text.labels
        for piece in encode(model.tokenizer, text.documents(label), max_length=min(model.max_length, 2048),
                            max_tokens=text.max_tokens, select=Selection())
    ]  # fmt: skip
    read = list(batches(pieces, token_budget=batch_tokens or fitting_batch(model.device), pad_id=model.pad_id))
    nets = {
        one.layer: _Net(one, model.anatomy.d_model, width, size_of(share, one.width, one.layer), generator)
        for one in maps
    }
    total = epochs * len(read)
    with progress("training the predictor", total, unit="batches", quiet=quiet) as advance:
        for step in range(total):
            if step % len(read) == 0:
                order = torch.randperm(len(read), generator=generator).tolist()
            batch = read[order[step % len(read)]].to(model.device)
            real = batch.attention_mask.bool()
            for layer, (x, h) in _seen(model, maps, batch.input_ids, batch.attention_mask).items():
                shape = (*real.shape, -1)
                nets[layer].step(x.view(shape)[real], h.view(shape)[real], rate * (1 - step / total))
            advance(1)
    arguments = {"share": share, "hidden": width, "epochs": epochs, "rate": rate, "layers": chosen, "seed": seed}
    inputs = {"model": dict(model.identity), "text": text.identity}
    source = provenance("generate.fit_predictor", arguments=arguments, inputs=inputs, seed=seed)
    recall = {layer: net.recall for layer, net in nets.items()}
    return Predictor(dict(model.identity), {layer: net.found() for layer, net in nets.items()}, share, recall, source)


def scores(parts: Parts, x: Tensor) -> Tensor:
    """One logit per neuron, (..., neurons) float32, for what enters the MLP, (..., d_model)."""
    normed = (x.float() - parts["mean"]) * parts["scale"]
    return F.linear(F.relu(F.linear(normed, parts["first"], parts["offset"])), parts["second"], parts["bias"])


class _Net:
    """One layer's network while it is trained."""

    def __init__(self, maps: MlpMaps, d_model: int, hidden: int, size: int, generator: torch.Generator) -> None:
        first = torch.randn(hidden, d_model, generator=generator) / d_model**0.5
        second = torch.randn(maps.width, hidden, generator=generator) / hidden**0.5
        prior = torch.full((maps.width,), float(torch.logit(torch.tensor(min(size / maps.width, 0.999)))))
        values = {"first": first, "offset": torch.zeros(hidden), "second": second, "bias": prior}
        self.size, self.recall = size, 0.0
        self.fixed: dict[str, Tensor] = {}
        self.learned = {name: nn.Parameter(value.to(maps.down.weight.device)) for name, value in values.items()}
        self.optimiser = torch.optim.Adam(self.learned.values())

    def step(self, x: Tensor, h: Tensor, rate: float) -> None:
        """One step on (tokens, d_model) and (tokens, neurons)."""
        if not self.fixed:  # the scale of what enters differs by orders between models; the first batch tells
            spread = x.float().std(0) if len(x) > 1 else torch.ones_like(x[0], dtype=torch.float32)
            self.fixed = {"mean": x.float().mean(0), "scale": 1 / spread.clamp_min(1e-6)}
        sizes = torch.full((len(h),), self.size, dtype=torch.int64, device=h.device)
        wanted = strongest(h.abs(), sizes)
        with torch.enable_grad():
            logits = scores({**self.fixed, **self.learned}, x)
            loss = F.binary_cross_entropy_with_logits(logits, wanted.float())
            self.optimiser.zero_grad()
            loss.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.recall = float((strongest(logits.detach(), sizes) & wanted).sum() / wanted.sum().clamp_min(1))

    def found(self) -> dict[str, Tensor]:
        return {name: part.detach().cpu().clone() for name, part in {**self.fixed, **self.learned}.items()}


def _seen(model: LanguageModel, maps: Sequence[MlpMaps], ids: Tensor, mask: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """What enters each MLP and its down projection, in one pass."""
    inside: dict[int, Tensor] = {}
    neurons: dict[int, Tensor] = {}

    def watched(layer: int, plain: Callable[[Tensor], Tensor], into: dict[int, Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            into[layer] = x.detach()
            return plain(x)

        return forward

    with _replaced([(one.ups[0], watched(one.layer, one.ups[0].forward, inside)) for one in maps]
                   + [(one.down, watched(one.layer, one.down.forward, neurons)) for one in maps]), torch.no_grad():  # fmt: skip
        model.trunk_module(**model.inputs(ids, mask))
    return {one.layer: (inside[one.layer], neurons[one.layer]) for one in maps}


@contextlib.contextmanager
def _replaced(pairs: Sequence[tuple[nn.Module, Callable[[Tensor], Tensor]]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module, forward in pairs:
            stack.enter_context(forward_replaced(module, forward))
        yield
