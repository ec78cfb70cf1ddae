"""What a training run of an autoencoder is asked to do: `Plan`, its schedules, and what it may not be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from patchclamp.core.errors import InputError
from patchclamp.read.sae_kinds import KINDS

DEAD = ("aux", "resample", "none")


@dataclass(frozen=True)
class Plan:
    """Everything that decides the weights, beside the activations."""

    kind: str
    d_in: int
    n_features: int
    k: int
    steps: int
    batch: int
    lr: float
    lr_warmup: float
    lr_decay: float
    sparsity: float
    sparsity_warmup: float
    normalise: bool
    dead: str
    dead_after: int
    aux: float
    seed: int

    def lr_at(self, step: int) -> float:
        """Learning rate of a step (from 0): linear warm-up over the first share, linear decay to 0 over the last."""
        up, down = self.lr_warmup * self.steps, self.lr_decay * self.steps
        rising = min(1.0, (step + 1) / up) if up >= 1 else 1.0
        falling = min(1.0, (self.steps - step) / down) if down >= 1 else 1.0
        return self.lr * rising * falling

    def sparsity_at(self, step: int) -> float:
        """Coefficient of the sparsity penalty of a step: from 0 up to `sparsity` over the first share."""
        up = self.sparsity_warmup * self.steps
        return self.sparsity * (min(1.0, step / up) if up >= 1 else 1.0)


def check_plan(plan: Plan, checkpoint_steps: int) -> None:
    """InputError naming the first argument that can't be."""
    if plan.kind not in KINDS:
        raise InputError(f"kind={plan.kind!r} given; autoencoders are of the kinds {', '.join(KINDS)}")
    if plan.dead not in DEAD:
        raise InputError(f"dead={plan.dead!r} given; dead features are treated by one of {', '.join(DEAD)}")
    whole = {
        "n_features": plan.n_features, "steps": plan.steps, "batch": plan.batch, "dead_after": plan.dead_after,
        "checkpoint_steps": checkpoint_steps, "k": plan.k,
    }  # fmt: skip
    for name, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} given; a whole number of at least 1 is needed")
    if plan.kind != "relu" and plan.k > plan.n_features:
        raise InputError(f"k={plan.k} given, but there are {plan.n_features} features")
    for name in ("lr_warmup", "lr_decay", "sparsity_warmup"):
        if not 0 <= getattr(plan, name) <= 1:
            raise InputError(f"{name}={getattr(plan, name)} given; it is a share of the steps, from 0 to 1")
    for name in ("lr", "sparsity", "aux"):
        value = getattr(plan, name)
        if not math.isfinite(value) or value < 0 or (name == "lr" and value == 0):
            raise InputError(
                f"{name}={value} given; a finite number {'above' if name == 'lr' else 'of at least'} 0 is needed"
            )
