"""`patchclamp models check`: builds a tiny random model of every causal-LM type and tests that its units are true.

The checks of one type, each on every layer that has an MLP:
- `bits`: logits are bit-identical while every site is observed;
- `trunk`: a run that stops early records the same values as the full forward pass;
- `product`: recorded `mlp` values times the down projection equal the recorded output of the projection (dense layers);
- `layer`: clamping all neurons of a layer to 0 gives the logits of the model with that projection zeroed;
- `neuron`: clamping one neuron to 0 gives the logits of the model with its column zeroed, and these differ from the plain ones;
- `pre`: what enters the activation function decides the gate, position by position; at 0 it silences a gated MLP
  (layers with that site);
- `rows`: changing one expert's neuron at one position changes the experts' output at that position alone (expert layers);
- `qkv`: q, k and v act as queries, keys and values do, and clamping `v` of a layer to 0 gives the logits of the model
  with its attention output projection zeroed (layers with these sites).
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchclamp.core.errors import Error, InputError
from patchclamp.core.files import atomic_write
from patchclamp.models.anatomy import weight_of
from patchclamp.models.attention_trial import refuted, tried_layers
from patchclamp.models.collect import Collector, taps_of
from patchclamp.models.hooks import Change, Seen, Tap, change, observe, run
from patchclamp.models.load import LanguageModel, load
from patchclamp.models.rows import ROWS
from patchclamp.models.tiny import NOT_BUILT, VOCABULARY, causal_types, quiet, tiny_model

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"
EXACT = 1e-4  # largest difference allowed, as a share of the effect that is compared


EXPLAINED = (
    "- Sites: `mlp` is the vector that enters the down projection; `gate` the activation function's output (for a plain MLP "
    "that is `mlp`), `pre` its input, `up` the up projection's output; `q`, `k` and `v` leave the attention's projections, "
    "before any norm or rotation; `attn` enters the attention output projection and `head` is its view "
    "by heads; `attn_out` and `mlp_out` leave the projections; `resid` leaves the block; `embed` the token embedding.",
    "- Experts: the neurons of expert e are `mlp.LAYER.eE.INDEX`. Shared experts, which every token passes, come after the "
    "routed ones, cut into experts of the same width. An expert that a token was not routed to counts as 0. They are watched "
    "under the eager, batched_mm and grouped_mm implementations alike; `gate`, `up` and `pre` exist in dense layers only.",
    "- Attention: `q`, `k` and `v` are absent where queries, keys and values come from latent vectors (MLA), pass a "
    "convolution or have no projections of their own; a layer that uses another's keys and values has `q` only.",
    "- Checks: `bits` logits are bit-identical under observation; `trunk` a run that stops early sees the same values; "
    "`product` recorded values times the down projection are its output; `layer` all neurons of a layer at 0 are its "
    "projection zeroed; `neuron` one neuron at 0 is its column zeroed; `pre` decides the gate position by position, and at 0 "
    "silences a gated MLP; `rows` one expert's neuron at one position moves that position alone; `qkv` values at 0 leave "
    "nothing for the attention output projection, a query moves its own position alone, and queries at 0 do what keys at 0 do.",
    "- Compiled models run uncompiled while they are watched or changed.",
)


@dataclass
class TypeResult:
    """What the checks said about one model type.

    status: "pass", "fail", or "not applicable" (nothing to check: reason says why). checks: name -> passed, of those
    that ran. form: "plain", "gated", "experts", "none", several joined by "+". sites: those found.
    """

    type: str
    status: str
    reason: str = ""
    model_class: str = ""
    form: str = ""
    sites: list[str] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_types(
    types: Iterable[str] | None = None, *, progress: Callable[[TypeResult], None] | None = None
) -> list[TypeResult]:
    """Check model types (all that transformers registers by default), one after another, in about a second each.

    progress: called with each result. A type that can't be built or read is a result, not an exception; an unknown
    type raises InputError.
    """
    results = []
    for name in causal_types() if types is None else types:
        started = time.perf_counter()
        result = check_type(name)
        result.seconds = round(time.perf_counter() - started, 2)
        results.append(result)
        if progress is not None:
            progress(result)
        gc.collect()
    return results


def check_type(name: str) -> TypeResult:
    """Build a tiny random model of one type and check its units."""
    if name not in causal_types():
        raise InputError(f"transformers registers no causal language model of type {name!r}")
    reason = NOT_BUILT.get(name) or ROWS.get(name, {}).get("refuse")
    if reason:
        return TypeResult(name, NOT_APPLICABLE, reason)
    try:
        hf = tiny_model(name)
    except Exception as problem:  # any failure of one type is a row of the table
        return TypeResult(name, FAIL, f"could not be built: {_said(problem)}")
    result = TypeResult(name, FAIL, model_class=type(hf).__name__)
    try:
        with quiet():
            enliven(hf)
            model = load(hf, check=False)
            check_units(model, result)
    except Exception as problem:  # as above
        result.status, result.reason = FAIL, _said(problem)
    return result


def check_units(model: LanguageModel, result: TypeResult) -> None:
    """Fill `result` with what the checks say about a model."""
    anatomy = model.anatomy
    result.sites = list(model.layouts)
    result.form = "+".join(dict.fromkeys(anatomy.forms))
    result.notes = list(anatomy.notes)
    layers = found_layers(model, "mlp")
    ids = torch.randint(3, VOCABULARY - 9, (2, 9), generator=torch.Generator().manual_seed(1))
    plain = model.logits(ids)
    result.checks["bits"] = _same_bits(model, ids, plain)
    result.checks["trunk"] = _same_trunk(model, ids, layers)
    if attending := tried_layers(model):
        result.checks["qkv"] = _attention_holds(model, ids, plain, attending)
    if not layers:
        failed = [name for name, passed in result.checks.items() if not passed]
        result.status = FAIL if failed else NOT_APPLICABLE
        result.reason = (
            f"failed: {', '.join(failed)}" if failed else "no MLP: no unit of the site mlp; resid can be recorded"
        )
        return
    for layer in layers:
        for check, passed in _layer_checks(model, ids, plain, layer).items():
            result.checks[check] = result.checks.get(check, True) and passed
    failed = [check for check, passed in result.checks.items() if not passed]
    result.status = FAIL if failed else PASS
    result.reason = f"failed: {', '.join(failed)}" if failed else ""


def enliven(hf: Any, *, seed: int = 0) -> None:
    """Give weights that were made zero or almost zero a size at which clamping shows; changes the model in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            fixed = any(word in name for word in ("norm", "A_log", "conv", "scale", "decay", "gate_weight"))
            if weight.dim() >= 2 and not fixed and float(weight.std()) < 0.08:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


def markdown_table(results: Sequence[TypeResult]) -> str:
    """The table of docs/models.md: counts, then one row per type."""
    import transformers

    counts = {status: sum(r.status == status for r in results) for status in (PASS, FAIL, NOT_APPLICABLE)}
    lines = [
        "# Model types",
        "",
        f"Made by `patchclamp models check` with transformers {transformers.__version__}: of {len(results)} causal-LM types, "
        f"{counts[PASS]} pass, {counts[NOT_APPLICABLE]} are not applicable, {counts[FAIL]} fail.",
        "Every type is built tiny, with random weights; its units are recorded, clamped and compared with changed weights.",
        "",
        *EXPLAINED,
        "",
        "| type | status | MLP | sites | checks | remarks |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        remarks = "; ".join([r.reason, *r.notes[:1]] if r.reason else r.notes[:1]).replace("|", "/")
        passed = " ".join(name for name, good in r.checks.items() if good)
        lines.append(f"| {r.type} | {r.status} | {r.form} | {' '.join(r.sites)} | {passed} | {remarks} |")
    return "\n".join(lines) + "\n"


def write_table(results: Sequence[TypeResult], path: str | os.PathLike[str]) -> Path:
    """Write the table as Markdown, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(markdown_table(results), encoding="utf-8")
    return Path(path)


# --- the checks --------------------------------------------------------------------------------------------------


def _same_bits(model: LanguageModel, ids: Tensor, plain: Tensor) -> bool:
    seen: set[tuple[str, int]] = set()
    with observe(model, taps_of(model), lambda one: seen.add((one.site, one.layer))):
        watched = model.logits(ids)
    missing = set(taps_of(model)) - seen
    if missing:
        raise Error(f"sites were found but never seen in a forward pass: {sorted(missing)[:3]}")
    return torch.equal(plain, watched)


def _same_trunk(model: LanguageModel, ids: Tensor, layers: list[int]) -> bool:
    site = "mlp" if layers else "resid"
    if site not in model.anatomy.sites:
        return True
    taps = [(site, layer) for layer in (layers or range(model.anatomy.n_layers))]
    full, early = Collector(model, site), Collector(model, site)
    with observe(model, taps, full):
        model.logits(ids)
    with observe(model, taps, early):
        run(model, ids, stop_after=taps[-1])
    return torch.equal(full.values, early.values) and bool(full.values.abs().sum() > 0)


def _layer_checks(model: LanguageModel, ids: Tensor, plain: Tensor, layer: int) -> dict[str, bool]:
    entry = model.anatomy.site("mlp", layer)
    recorded, outputs = Collector(model, "mlp"), None
    with contextlib.ExitStack() as stack:
        stack.enter_context(observe(model, [("mlp", layer)], recorded))
        if model.layouts["mlp_out"].widths[layer]:
            outputs = Collector(model, "mlp_out")
            stack.enter_context(observe(model, [("mlp_out", layer)], outputs))
        model.logits(ids)
    values = recorded.layer(layer)
    found: dict[str, bool] = {}
    if len(entry.places) == 1 and not entry.experts and outputs is not None:
        module: Any = model.anatomy.down(layer)
        bias = getattr(module, "bias", None)
        expected = values @ weight_of(module).T + (0 if bias is None else bias)
        found["product"] = torch.allclose(expected, outputs.layer(layer), rtol=1e-4, atol=1e-5)
    same = sharing(model, layer)
    with change(model, {("mlp", one): lambda seen: torch.zeros_like(seen.values) for one in same}):
        clamped = model.logits(ids)
    with zeroed(model, layer):
        found["layer"] = agrees(clamped, model.logits(ids), plain)
    unit = int(values.abs().sum(0).argmax())
    with change(model, {("mlp", one): lambda seen: without(seen, unit) for one in same}):
        clamped = model.logits(ids)
    with zeroed(model, layer, unit):
        found["neuron"] = agrees(clamped, model.logits(ids), plain)
    if layer in found_layers(model, "pre"):
        found["pre"] = _decides_gate(model, ids, plain, layer, same)
    if entry.experts and outputs is not None:
        found["rows"] = _one_row(model, ids, layer, values, outputs.layer(layer))
    return found


def _decides_gate(model: LanguageModel, ids: Tensor, plain: Tensor, layer: int, same: list[int]) -> bool:
    """Whether what enters the activation function decides the gate, and silences a gated MLP when it is 0."""
    rows = torch.arange(ids.numel()).roll(1)  # every position gets what its neighbour had
    if layer in found_layers(model, "gate"):
        plain_gate = _first_call(model, ids, ("gate", layer), {})
        moved = _first_call(model, ids, ("gate", layer), {("pre", layer): lambda seen: seen.values[rows]})
        if not torch.allclose(moved, plain_gate[rows], rtol=1e-4, atol=1e-6):
            return False
    if model.anatomy.forms[layer] != "gated":
        return True
    with change(model, {("pre", one): lambda seen: torch.zeros_like(seen.values) for one in same}):
        silent = model.logits(ids)
    with zeroed(model, layer):
        return agrees(silent, model.logits(ids), plain)


def _first_call(model: LanguageModel, ids: Tensor, tap: Tap, changes: Mapping[Tap, Change]) -> Tensor:
    """A tap's values when it is first reached; later calls of a module that layers share see what the first one did."""
    calls: list[Tensor] = []
    with change(model, changes), observe(model, [tap], lambda seen: calls.append(seen.values.detach().clone())):
        run(model, ids)
    return calls[0]


def _attention_holds(model: LanguageModel, ids: Tensor, plain: Tensor, layers: list[int]) -> bool:
    """Whether q, k and v act as such, and `v` at 0 is the attention output projection zeroed."""
    wrong = refuted(model, ids[:1], EXACT)
    if wrong:
        raise Error("; ".join(f"{site}.{layer}: {said}" for (site, layer), said in wrong.items()))
    for layer in found_layers(model, "v"):
        weights = [weight_of(model.anatomy.module(place.path)) for place in model.anatomy.site("attn", layer).places]
        same = [one for one in layers if _out_weight(model, one).data_ptr() == weights[0].data_ptr()]
        with change(model, {("v", one): lambda seen: torch.zeros_like(seen.values) for one in same}):
            clamped = model.logits(ids)
        with blank(weights):
            if not agrees(clamped, model.logits(ids), plain):
                return False
    return True


def _out_weight(model: LanguageModel, layer: int) -> Tensor:
    return weight_of(model.anatomy.module(model.anatomy.site("attn", layer).path))


def found_layers(model: LanguageModel, site: str) -> list[int]:
    """The layers that have a site."""
    return [layer for layer, entry in enumerate(model.anatomy.sites.get(site, ())) if entry is not None]


@contextlib.contextmanager
def blank(weights: list[Tensor]) -> Iterator[None]:
    """Some weights at 0; restored at the end."""
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.zero_()
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


def _one_row(model: LanguageModel, ids: Tensor, layer: int, values: Tensor, plain: Tensor) -> bool:
    """Whether a change at one routed (position, expert) moves the experts' output at that position alone."""
    entry = model.anatomy.site("mlp", layer)
    routed = values[:, : entry.width].abs()
    position, unit = divmod(int(routed.argmax()), entry.width)

    def push(one: Seen) -> Tensor:
        inside = unit - one.offset
        if not 0 <= inside < one.values.shape[1]:
            return one.values
        rows = torch.arange(one.values.shape[0]) if one.rows is None else one.rows
        new = one.values.clone()
        new[rows == position, inside] += 1
        return new

    out = Collector(model, "mlp_out")
    with change(model, {("mlp", layer): push}), observe(model, [("mlp_out", layer)], out):
        model.logits(ids)
    moved = (out.layer(layer) - plain).abs().amax(1) > 0
    return bool(moved[position]) and int(moved.sum()) == 1


def without(one: Seen, unit: int) -> Tensor:
    """A tap's values with one unit of the layer at 0."""
    inside = unit - one.offset
    if not 0 <= inside < one.values.shape[1]:
        return one.values
    new = one.values.clone()
    new[:, inside] = 0
    return new


def sharing(model: LanguageModel, layer: int) -> list[int]:
    """The layers whose down projection is the same tensor as this layer's (itself included)."""
    address = model.anatomy.down_weights(layer)[0][1].data_ptr()
    entries = enumerate(model.anatomy.sites["mlp"])
    return [
        n for n, entry in entries if entry is not None and model.anatomy.down_weights(n)[0][1].data_ptr() == address
    ]


@contextlib.contextmanager
def zeroed(model: LanguageModel, layer: int, unit: int | None = None) -> Iterator[None]:
    """The model with a layer's down projections zeroed, or with the column of one neuron zeroed; restored at the end."""
    weights = model.anatomy.down_weights(layer)
    kept = [weight.detach().clone() for _, weight in weights]
    try:
        with torch.no_grad():
            for offset, weight in weights:
                if unit is None:
                    weight.zero_()
                elif 0 <= unit - offset < weight.shape[1]:
                    weight[:, unit - offset] = 0
        yield
    finally:
        with torch.no_grad():
            for (_, weight), before in zip(weights, kept, strict=True):
                weight.copy_(before)


def agrees(one: Tensor, other: Tensor, plain: Tensor) -> bool:
    """Whether two changed results are equal beside the size of their change, which must be there and finite."""
    effect = float((other - plain).abs().max())
    scale = float(plain.abs().max())
    difference = float((one - other).abs().max())
    return effect > 1e-6 * scale and difference <= max(EXACT * effect, 3e-6 * scale) and difference < 0.1 * effect


def _said(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:200]}" if text else type(problem).__name__
