"""Generate with the core neurons of the prompt only: `with core_sparse(model, share=0.2): model.generate(...)`.

Wang et al. 2024, "CoreInfer" (arXiv 2410.18311). While the prompt is read the model is whole, and the neurons that the text
mostly uses are counted; every later token is computed with these alone, cut out of the MLPs' weights once. No predictor, no
change of the mask from token to token. Works through the ordinary `generate()`.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
from torch import nn

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.memory import kept_memory
from patchclamp.generate.cuts import FORMS
from patchclamp.generate.guides import SITE, Guide, guide_of
from patchclamp.generate.layers import Layer, Settings
from patchclamp.generate.maps import MlpMaps, layers_of, mlp_maps
from patchclamp.generate.offload import mlp_offloaded
from patchclamp.generate.texts import Texts
from patchclamp.generate.weights import Weights
from patchclamp.models.hooks import Seen, Step, Tap, forward_replaced, observe
from patchclamp.models.units import UnitSet
from patchclamp.record.statistics.core import RANKED_BY, check_share

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

_ACTIVE: WeakSet[nn.Module] = WeakSet()


@contextlib.contextmanager
def core_sparse(
    model: LanguageModel,
    *,
    share: float = 0.2,
    token_share: float = 0.4,
    guide: Any = "prompt",
    layers: Sequence[float] | Sequence[int] = (0.1, 1.0),
    by: str = "positive",
    shared_k: bool = False,
    refresh: int | None = None,
    keep: float = 0.5,
    form: str = "auto",
    offload: Any = None,
    min_tokens: int = 32,
    seed: int = 0,
) -> Iterator[CoreSparse]:
    """Inside the context every prompt is read by the whole model, and what follows is computed with its core neurons only.

    share: of each layer's neurons that are kept (beta; 0.2 in the paper, 0.4 for translation); 1.0 is the plain model, bit for
    bit. token_share: of a token's positive neurons that count as its core (alpha). guide: who chooses: "prompt" (the text's own
    core; stability-guided), clusters made by `fit_clusters` (similarity-guided, for short prompts), and to compare with a
    UnitSet (`share` has no meaning then), `hot_neurons`, "random", "oracle" (strongest per token, whole MLP computed), "token
    core" (each token's own core), or what `fit_predictor` made. layers: a range of depth in which MLPs are cut, by default all
    but the first tenth, or layer numbers; the rest stays whole. by: "positive" ranks positive activations, "abs" their size
    (gated neurons matter below 0, too). shared_k: one core size for all tokens of a prompt, as the reference code has it.
    refresh: choose anew after so many new tokens, from the prompt's and the new tokens' counts; keep: what earlier counts weigh
    then. form: how several texts of a batch are computed, always exactly: "union", "grouped", "auto", or "masked" (the whole
    MLP with zeros; composes with clamps of neurons). offload: "cpu", "disk" or a folder: where the cut layers' MLP weights are
    kept meanwhile, see `mlp_offloaded`. min_tokens: warn of shorter prompts, whose core is unstable. seed: of "random".

    Every text of a batch has a core of its own; padding doesn't count; beams and samples of one prompt share it. Where a model
    is called by hand, the first call on an empty cache is the prompt. Everything is undone on leaving, on any exception too.

    Differs from the reference code: no token is read twice, one-token prompts and batches work, ties are defined, one site is
    used throughout, and defaults are the paper's (the code exchanges token_share and share). Raises InputError for arguments out
    of range, ModelError for MLPs that can't be cut (experts, quantized weights, norms between the projections).
    """
    chosen = layers_of(model.anatomy.n_layers, layers)
    settings = Settings(check_share("share", share), check_share("token_share", token_share), by, shared_k, refresh, keep, form,
                        min_tokens)  # fmt: skip
    who = guide_of(guide, seed=seed, token_share=token_share, by=by, shared_k=shared_k)
    _check(settings, who)
    who.check(model, chosen, token_share=token_share, by=by)
    maps = mlp_maps(model, sorted({*chosen, *who.counted(chosen)}))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(model))
        # every prompt cuts parts of the same sizes: without this a CPU pays for their pages anew
        stack.enter_context(kept_memory() if offload is None else mlp_offloaded(model, offload, layers=chosen))
        sparse = CoreSparse(model, who, maps, chosen, settings)
        for maps_of, forward in sparse.forwards():
            stack.enter_context(forward_replaced(maps_of, forward))
        stack.enter_context(observe(model, _first_taps(model, maps[0].layer), sparse.begin))
        stack.callback(sparse.release)
        yield sparse


class CoreSparse:
    """What is going on inside `core_sparse`, and what was chosen for the last prompts.

    share: of the neurons. guide: its name. layers: numbers of the layers that are cut. seconds: spent on choosing and on
    cutting out since the context began. refreshed: how often cores were chosen anew.
    """

    def __init__(
        self,
        model: LanguageModel,
        guide: Guide,
        maps: Sequence[MlpMaps],
        layers: Sequence[int],
        settings: Settings,
    ) -> None:
        self.share, self.guide, self.layers = settings.share, guide.name, tuple(layers)
        self.seconds = {"choose": 0.0, "cut": 0.0}
        self.refreshed = 0
        self._model, self._guide, self._settings = model, guide, settings
        counted, weights = set(guide.counted(layers)), Weights()
        self._layers = {
            one.layer: Layer(one, guide, weights, settings, counted=one.layer in counted, cuts=one.layer in layers)
            for one in maps
        }
        self._texts = Texts([], 0)
        self._step: Step | None = None
        self._state = "empty"
        self._since = 0
        self._warned = False

    @property
    def tokens(self) -> list[int]:
        """Tokens of every text's prompt."""
        return list(self._texts.tokens)

    @property
    def forms(self) -> dict[int, str]:
        """How each cut layer is computed now: "whole", "sliced", "union", "grouped" or "masked"."""
        return {layer: "whole" if one.cut is None else one.cut.form for layer, one in self._layers.items() if one.cuts}

    @property
    def bytes(self) -> dict[str, int]:
        """Of the MLP weights of the cut layers: "whole", and what one step over the last texts "read"s."""
        here = [one for one in self._layers.values() if one.cuts]
        whole = sum(one.maps.bytes for one in here)
        return {"whole": whole, "read": sum(one.maps.bytes if one.cut is None else one.cut.bytes for one in here)}

    def cores(self) -> list[UnitSet]:
        """The neurons chosen for each text of the last batch of prompts."""
        if self._state == "read":
            self._choose()
        layout = self._model.layouts[SITE]
        kept = {layer: one.cores for layer, one in self._layers.items() if one.cores and one.cuts}
        found = []
        for text in range(self._texts.count if kept else 0):
            parts = [layout.slice(layer).start + cores[text].cpu().numpy() for layer, cores in kept.items()]
            found.append(UnitSet.at(self._model, SITE, np.concatenate(parts)))
        return found

    def __repr__(self) -> str:
        where = f"layers {self.layers[0]}-{self.layers[-1]}"
        return f"CoreSparse({self._model.name}: {self.share:.0%} of the neurons of {where}, guide {self.guide})"

    def release(self) -> None:
        """Let go of the parts of weights; what was chosen is kept."""
        for layer in self._layers.values():
            layer.release()

    def forwards(self) -> Iterator[tuple[Any, Any]]:
        """(module, what takes the place of its forward) of every projection concerned."""
        for layer in self._layers.values():
            for number, module in enumerate(layer.maps.modules):
                yield module, layer.forward(number)

    def begin(self, seen: Seen) -> None:
        """Decide what a forward pass is: prompts (or a part of them), new tokens, or both in one."""
        step = seen.step
        if step is self._step:
            return
        self._step = step
        first, last = _prompt_ends(step, self._texts.columns)
        whole = step.start == 0 and step.prompt_length is None
        if step.start == 0:
            whole = whole or (first == last == step.seq)
            self._texts = Texts.begun(seen, whole=whole)
            for layer in self._layers.values():
                layer.begin()
        elif not self._texts.count:
            raise InputError("tokens follow a prompt that was read outside of core_sparse; read the prompt inside it")
        if whole or step.start + step.seq <= first:
            self._read(step, None)
        elif step.start >= last:
            self._go_on(step)
        else:
            self._read(step, ~step.scope("generated").view(step.batch, step.seq))

    def _read(self, step: Step, prompt: Any) -> None:
        """A pass over prompts or a part of them; with `prompt` (batch, seq) bool other positions are new tokens."""
        if prompt is not None and self._guide.looks_ahead:
            raise InputError(
                f"prompt and new tokens came in one pass, but the guide {self._guide.name!r} must have read the prompt before; "
                "generate with a KV cache (use_cache=True)"
            )
        self._texts.fit(step.batch)
        before = self._texts.split() if step.start else None
        self._texts.read(step, prompt)
        for layer in self._layers.values():
            if before is not None:
                layer.split(before)
            layer.read(step, self._texts, prompt)
        self._state = "read"

    def _go_on(self, step: Step) -> None:
        """A pass over new tokens."""
        settings = self._settings
        more = self._texts.fit(step.batch)
        if self._state == "read":
            self._choose()
            self._since = 0
        elif settings.refresh is not None and self._since >= settings.refresh and settings.share < 1 and not more:
            for layer in self._layers.values():
                layer.refresh(step, self._texts)
            self._state, self._since = "refreshed", step.seq
            self.refreshed += 1
            return
        if more or self._state != "cut":
            started = time.perf_counter()
            for layer in self._layers.values():
                layer.go_on(self._texts)
            self.seconds["cut"] += time.perf_counter() - started
            self._state = "cut"
        self._since += step.seq

    def _choose(self) -> None:
        """Choose every text's core from what was counted in its prompt."""
        self._state = "chosen"
        if self._guide.per_token:
            return
        started = time.perf_counter()
        self._check_tokens()
        counts = {number: layer.counts for number, layer in self._layers.items() if layer.counts is not None}
        for layer in self._layers.values():
            if layer.cuts:
                layer.choose(self._texts.count, counts)
        self.seconds["choose"] += time.perf_counter() - started

    def _check_tokens(self) -> None:
        tokens, fewest = self._texts.tokens, self._settings.min_tokens
        if not self._guide.counted(self.layers) or self._settings.share >= 1:
            return
        if 0 in tokens:
            raise InputError(f"prompt {tokens.index(0)} of the batch is empty, so nothing says which neurons it needs")
        if self.guide == "prompt" and min(tokens) < fewest and not self._warned:
            self._warned = True
            warnings.warn(
                f"a prompt of {min(tokens)} tokens gives an unstable core (below min_tokens={fewest}); a longer prompt, or "
                "clusters fitted on other text (guide=fit_clusters(...)), serve it better",
                stacklevel=2,
            )


def _check(settings: Settings, guide: Guide) -> None:
    if settings.by not in RANKED_BY:
        raise InputError(f"by={settings.by!r} given; neurons are ranked by {' or '.join(RANKED_BY)}")
    if settings.form not in FORMS:
        raise InputError(f"form={settings.form!r} given; it is one of {', '.join(FORMS)}")
    if settings.refresh is not None and settings.refresh < 1:
        raise InputError(f"refresh={settings.refresh} given; it is a number of tokens, at least 1, or None for never")
    if settings.refresh is not None and guide.name != "prompt":
        raise InputError(
            f"refresh={settings.refresh} given, but only guide='prompt' can choose anew, not {guide.name!r}"
        )
    if not 0 <= settings.keep <= 1:
        raise InputError(f"keep={settings.keep} given; it is a share between 0 and 1")


def _prompt_ends(step: Step, columns: int) -> tuple[int, int]:
    """First and last column at which a row's prompt ends. columns: where it ended, for a model that is called by hand."""
    length = step.prompt_length
    if length is None:
        return columns, columns
    return (length, length) if isinstance(length, int) else (int(length.min()), int(length.max()))


def _first_taps(model: LanguageModel, layer: int) -> list[Tap]:
    """Taps before the MLP of a layer, of which at least one is passed in every forward pass: embeddings can be given, too."""
    before: list[Tap] = [("resid", layer - 1)] if layer else [("attn_out", 0)]
    if before[0][0] not in model.layouts or not model.layouts[before[0][0]].widths[before[0][1]]:
        before = []
    outside = (
        model.hf.config.get_text_config(decoder=True) is not model.hf.config
    )  # embedded before the text model is called
    return before if outside or "embed" not in model.layouts else [("embed", 0), *before]


@contextlib.contextmanager
def _alone(model: LanguageModel) -> Iterator[None]:
    """Refuse a second use on the same model: which neurons a text needs would be asked of a model that is cut already."""
    if model.hf in _ACTIVE:
        raise InputError("core_sparse is active on this model already; leave it first")
    _ACTIVE.add(model.hf)
    try:
        yield
    finally:
        _ACTIVE.discard(model.hf)


make_callable(__name__)
