"""`check_model`: does observing change nothing, and do padding and batch mates leave recorded values alone?

Run once when a model is loaded; `patchclamp check MODEL` shows the report. Observing that changes a bit is an error;
values that move with padding or batch (expert capacity, recurrent states, approximate attention) are a warning with
the numbers, for such a model must be recorded one document at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from patchclamp.core.errors import CheckError, Error
from patchclamp.models.attention_trial import refuted, tried_layers
from patchclamp.models.collect import collect, taps_of
from patchclamp.models.hooks import observe

LIMITS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Check:
    """One check. value: what was measured (largest difference beside the largest value; 0 = none), limit: what passes."""

    name: str
    status: str
    value: float | None
    limit: float | None
    said: str


@dataclass
class Report:
    """All checks of one model."""

    model: str
    checks: list[Check] = field(default_factory=list)

    @property
    def warnings(self) -> list[Check]:
        return [check for check in self.checks if check.status != OK]

    @property
    def passed(self) -> bool:
        """No check says that numbers would be wrong; warnings may remain."""
        return all(check.status != ERROR for check in self.checks)

    def raise_errors(self) -> None:
        """Raise CheckError if a check says that numbers would be wrong."""
        wrong = [check.said for check in self.checks if check.status == ERROR]
        if wrong:
            raise CheckError(f"{self.model}: {'; '.join(wrong)}")

    def to_dict(self) -> dict[str, Any]:
        return {"model": self.model, "passed": self.passed, "checks": [asdict(check) for check in self.checks]}

    def __str__(self) -> str:
        return "\n".join(f"{check.status:8} {check.name}: {check.said}" for check in self.checks)


def check_model(model: Any) -> Report:
    """Check a LanguageModel with a handful of short forward passes over random tokens (seeded).

    First q, k and v are tried in the attention; what doesn't act as such is taken out of the model's sites.
    Checks: "observing", "sites", "finite", "attention" (says what was taken out; not where there is no such site), and
    for values of `mlp` (`resid` where there is none) "batch", "right padding", "left padding".
    """
    report = Report(model.name)
    long = _tokens(model, 11, 0)  # shorter where the model takes no more
    short = _tokens(model, max(1, long.shape[1] * 7 // 11), 1)
    pad = long.shape[1] - short.shape[1]
    tried = _attention(model, long)
    report.checks += _observing(model, torch.cat([long, long.flip(1)])) + tried
    site = "mlp" if "mlp" in model.layouts else "resid"
    if site not in model.layouts:
        return report
    limit = LIMITS.get(model.dtype, 1e-4)
    alone = collect(model, site, short, torch.ones_like(short))
    for name, inputs in (
        ("batch", lambda: (torch.cat([short, short.flip(1)]), 0, 0)),
        ("right padding", lambda: (torch.cat([_padded(model, short, pad, left=False), long]), 0, pad)),
        ("left padding", lambda: (torch.cat([_padded(model, short, pad, left=True), long]), pad, pad)),
    ):
        report.checks.append(_moved(model, site, name, alone, inputs, limit))
    return report


def _attention(model: Any, ids: Tensor) -> list[Check]:
    """Leave out those of q, k, v that don't act as queries, keys and values do."""
    layers = tried_layers(model)
    if not layers:
        return []
    limit = 1e-4 if model.dtype in (torch.float32, torch.float64) else 1e-2
    try:
        wrong = refuted(model, ids, limit)
    except (Error, RuntimeError, ValueError, IndexError, TypeError, AttributeError) as problem:
        every = [tap for tap in taps_of(model) if tap[0] in ("q", "k", "v")]
        wrong = dict.fromkeys(every, f"it could not be tried ({type(problem).__name__})")
    model.anatomy.leave_out(wrong)
    out = "; ".join(f"{site}.{layer} left out, {reason}" for (site, layer), reason in wrong.items())
    said = out or f"q, k and v of {len(layers)} layers act as such"
    return [Check("attention", OK, None, None, said)]


def _observing(model: Any, ids: Tensor) -> list[Check]:
    plain = model.logits(ids)
    seen: set[tuple[str, int]] = set()
    with observe(model, taps_of(model), lambda one: seen.add((one.site, one.layer))):
        watched = model.logits(ids)
    same = torch.equal(plain, watched) or torch.equal(plain.nan_to_num(), watched.nan_to_num())
    missing = [f"{site}.{layer}" for site, layer in taps_of(model) if (site, layer) not in seen]
    finite = bool(torch.isfinite(plain).all())
    return [
        Check(
            "observing",
            OK if same else ERROR,
            None,
            None,
            "logits are bit-identical" if same else "observing changes logits",
        ),
        Check("sites", ERROR if missing else OK, None, None, _sites(model, missing)),
        Check(
            "finite",
            OK if finite else WARNING,
            None,
            None,
            "logits are finite" if finite else "logits hold NaN or infinity",
        ),
    ]


def _sites(model: Any, missing: list[str]) -> str:
    if missing:
        return f"never reached in a forward pass: {', '.join(missing[:4])}"
    return ", ".join(f"{site} {layout.total}" for site, layout in model.layouts.items())


def _moved(
    model: Any, site: str, name: str, alone: Tensor, inputs: Callable[[], tuple[Tensor, int, int]], limit: float
) -> Check:
    ids, start, padding = inputs()
    mask = torch.ones_like(ids)
    if padding:
        mask[0, :padding] = 0 if start else 1
        mask[0, -padding:] = 1 if start else 0
    try:
        values = collect(model, site, ids, mask)[:1, start : start + alone.shape[1]]
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as problem:
        return Check(
            name, WARNING, None, limit, f"could not be checked: {type(problem).__name__}: {str(problem)[:120]}"
        )
    moved = float((values - alone).abs().max() / alone.abs().max().clamp(min=1e-30))
    said = f"{site} values move by {moved:.1e} of the largest"
    return Check(name, OK if moved <= limit else WARNING, moved, limit, said if moved else f"{site} values don't move")


def _padded(model: Any, ids: Tensor, count: int, *, left: bool) -> Tensor:
    fill = torch.full((ids.shape[0], count), model.pad_id, device=ids.device)
    return torch.cat([fill, ids] if left else [ids, fill], dim=1)


def _tokens(model: Any, length: int, seed: int) -> Tensor:
    vocabulary = int(model.hf.config.get_text_config(decoder=True).vocab_size)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(min(5, vocabulary - 1), vocabulary, (1, min(length, model.max_length)), generator=generator)
    return ids.masked_fill(ids == model.pad_id, min(4, vocabulary - 1)).to(model.device)
