"""Train sparse autoencoders from streamed activations: deterministic by seed, resumable, one batch in memory at a time.

Rows are scaled so that their variance is their width (about the unit variance per coordinate that coefficients are made
for), and the scale is folded into the biases at the end: the finished autoencoder reads rows as they come. Decoder rows
keep length 1: the part of their gradient along themselves is taken out, and lengths are restored after every step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchclamp.core.errors import InputError, ModelError
from patchclamp.core.memory import kept_memory
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.read import sae_losses as losses
from patchclamp.read.sae_checkpoint import load_checkpoint, save_checkpoint
from patchclamp.read.sae_kinds import KINDS, SAE
from patchclamp.read.sae_plan import Plan, check_plan
from patchclamp.record.activations import Activations

CALIBRATION = 8192  # rows from which the scale, the mean and the variance are taken
LOG_EVERY = 50  # steps
BAR_RATE = 0.01  # of the running mean of BatchTopK's threshold
WIDTH = 0.05  # of the kernel of straight-through thresholds, in scaled units
FIRST_THRESHOLD = 0.05
_SPARSITY = {"relu": 0.3, "jumprelu": 1.0}


def train_sae(
    activations: Activations,
    kind: str = "topk",
    *,
    n_features: int | None = None,
    k: int = 32,
    steps: int = 2000,
    batch: int = 1024,
    lr: float | None = None,
    lr_warmup: float = 0.05,
    lr_decay: float = 0.2,
    sparsity: float | None = None,
    sparsity_warmup: float = 0.2,
    normalise: bool = True,
    dead: str = "aux",
    dead_after: int | None = None,
    aux: float = 1 / 32,
    seed: int = 0,
    device: torch.device | str | None = None,
    name: str = "sae",
    site: str | None = None,
    layer: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_steps: int = 500,
    quiet: bool = False,
) -> SAE:
    """Train an autoencoder on the rows of a site, read over and over until `steps` batches have passed.

    kind: "topk" (Gao et al. 2024), "batchtopk" (Bussmann et al. 2024), "jumprelu" (Rajamanoharan et al. 2024) or "relu"
    (Bricken et al. 2023). n_features: by default 8 per coordinate. k: active features per row; what jumprelu is driven to
    by the penalty sparsity * d_in * (L0 / k - 1)^2, unused by relu. steps, batch: rows seen are steps * batch. lr: of Adam,
    by default 2e-4 * sqrt(16384 / n_features), at most 2e-3 (Gao et al.). lr_warmup, lr_decay, sparsity_warmup: shares of
    the steps. sparsity: coefficient of the penalty; for relu of the L1 norm of features, in units of sqrt(d_in) (default
    0.3), for jumprelu as above (default 1), unused by the others. normalise: scale rows (see this file's docstring). dead:
    what becomes of features that haven't fired for `dead_after` rows (default a tenth of all): "aux" (they learn to
    explain what the others leave over, weight `aux`), "resample" (they are put on badly explained rows, Bricken et al.)
    or "none". site, layer: what the rows are of, by default what `activations` says. checkpoint: a file that the state is
    kept in, every `checkpoint_steps` steps and at the end; a run that finds one of its own goes on there, and ends with
    the very weights of an uninterrupted run (on a CPU, with as many threads).

    Losses are means over rows of the squared error summed over coordinates. The provenance of the result keeps the plan
    and a history: step, mse, explained variance, l0, dead features. Raises InputError for values out of range and for
    activations that are constant or not finite, MismatchError for a checkpoint of another run, ModelError if it diverges.
    """
    site, layer = site or activations.site, activations.layer if layer is None else layer
    if site is None or layer is None:
        raise InputError("these activations don't say what they are of; give site= and layer=")
    width = int(activations.width)
    count = 8 * width if n_features is None else n_features
    plan = Plan(
        kind, width, count, k, steps, batch,
        lr=min(2e-3, 2e-4 * math.sqrt(2**14 / max(1, count))) if lr is None else lr,
        lr_warmup=lr_warmup, lr_decay=lr_decay,
        sparsity=_SPARSITY.get(kind, 0.0) if sparsity is None else sparsity, sparsity_warmup=sparsity_warmup,
        normalise=normalise, dead=dead, dead_after=max(1, steps * batch // 10) if dead_after is None else dead_after,
        aux=aux, seed=seed,
    )  # fmt: skip
    check_plan(plan, checkpoint_steps)
    file = None if checkpoint is None else Path(checkpoint)
    trainer = Trainer(plan, activations, None if device is None else torch.device(device))
    source = activations.source
    if file is not None and file.is_file():
        trainer.restore(*load_checkpoint(file, asdict(plan), source))
    with progress(f"{kind} autoencoder", plan.steps, unit="steps", quiet=quiet) as advance, kept_memory():
        advance(trainer.step)
        for x in trainer.rows():
            trainer.learn(x)
            advance(1)
            if file is not None and (trainer.step % checkpoint_steps == 0 or trainer.step == plan.steps):
                save_checkpoint(file, asdict(plan), source, *trainer.state())
    made = provenance("read.train_sae", arguments=asdict(plan), inputs={"activations": source}, seed=seed)
    return trainer.finished(name, site, layer, model=activations.model, provenance={**made, "history": trainer.history})


class Trainer:
    """The state of a run: parameters, Adam's moments, how long features have been silent, and where in the rows it is."""

    def __init__(self, plan: Plan, activations: Activations, device: torch.device | None) -> None:
        """device: by default the one that the rows are on."""
        self.plan, self.activations = plan, activations
        self.step = self.epoch = self.row = 0
        self.history: list[dict[str, float]] = []
        self.scale, self.variance = 1.0, 1.0
        first, found = self._first()
        self.device = device = found if device is None else device
        self.sums = torch.zeros(
            2, dtype=torch.float64, device=device
        )  # squared error, active features; since the last log
        self.silent = torch.zeros(plan.n_features, dtype=torch.int64, device=device)  # rows since a feature fired
        self.bar = torch.zeros((), dtype=torch.float64, device=device)  # BatchTopK's threshold
        self.parameters = {name: values.to(device).requires_grad_() for name, values in first.items()}
        self.adam = torch.optim.Adam(list(self.parameters.values()), lr=plan.lr, fused=device.type in ("cpu", "cuda"))

    def rows(self) -> Iterator[Tensor]:
        """The batches from where the run stands to its last step; epochs follow each other without a gap."""
        held: list[Tensor] = []
        size, batch = 0, self.plan.batch
        while self.step < self.plan.steps:
            skip, seen = self.row, 0
            for block in self.activations.blocks(batch, seed=self.plan.seed + self.epoch):
                seen += len(block)
                if skip >= len(block):
                    skip -= len(block)
                    continue
                held.append(block[skip:])
                size, skip = size + len(held[-1]), 0
                while size >= batch and self.step < self.plan.steps:
                    joined = torch.cat(held) if len(held) > 1 else held[0]
                    held, size = [joined[batch:]], size - batch
                    self.row = seen - size
                    yield joined[:batch].to(self.device, torch.float32)
            if not seen:
                raise InputError("there are no activations to train on: the source gave no rows")
            self.epoch, self.row = self.epoch + 1, 0

    def learn(self, x: Tensor) -> None:
        """One step on a batch."""
        plan, z = self.plan, x * self.scale
        self.adam.param_groups[0]["lr"] = plan.lr_at(self.step)
        self.adam.zero_grad(set_to_none=True)
        explained, fired, penalty = FORWARD[plan.kind](self, z)
        wrong = (explained - z).square().sum() / len(z)
        loss = wrong + penalty
        dead = self.silent >= plan.dead_after if plan.dead != "none" else None
        if dead is not None and plan.dead == "aux" and bool(dead.any()):
            loss = loss + plan.aux * plan.d_in * self._revived(z, (z - explained).detach(), dead)
        loss.backward()
        self._move()
        with torch.no_grad():
            self.silent += len(z)
            self.silent[fired > 0] = 0
            self.sums += torch.stack([wrong.detach().double(), fired.sum().double() / len(z)])
        self.step += 1
        if dead is not None and plan.dead == "resample" and self.step % max(1, plan.dead_after // plan.batch) == 0:
            self._resample(z, (z - explained).detach(), dead & (self.silent > 0))
        if self.step % LOG_EVERY == 0 or self.step == plan.steps:
            self._log()

    def finished(self, name: str, site: str, layer: int, **common: Any) -> SAE:
        """The autoencoder of unscaled rows. Scaling by s and features that scale with their input commute: with decoder rows
        of length 1 only biases and thresholds are divided by s."""
        own = {key: values.detach().clone() for key, values in self.parameters.items()}
        arguments: dict[str, Any] = {}
        if self.plan.kind in ("topk", "batchtopk"):
            arguments["k"] = self.plan.k
        if self.plan.kind == "jumprelu":
            arguments["threshold"] = own["threshold"] / self.scale
        if self.plan.kind == "batchtopk":
            arguments["threshold"] = (self.bar / self.scale).float().expand(self.plan.n_features).clone()
        return KINDS[self.plan.kind](
            name, site, layer,
            encoder=own["encoder"].T.contiguous(), encoder_bias=own["encoder_bias"] / self.scale,
            directions=own["directions"], decoder_bias=own["decoder_bias"] / self.scale, **arguments, **common,
        )  # fmt: skip

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain data from which the run goes on."""
        tensors = {name: values.detach() for name, values in self.parameters.items()}
        for name, values in self.parameters.items():
            tensors |= {f"adam.{name}.{key}": moment for key, moment in self.adam.state[values].items()}
        tensors |= {"silent": self.silent, "bar": self.bar, "sums": self.sums}
        plain = {key: getattr(self, key) for key in ("step", "epoch", "row", "scale", "variance", "history")}
        return tensors, plain

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on from a state."""
        with torch.no_grad():
            for name, values in self.parameters.items():
                values.copy_(tensors[name])
                prefix = f"adam.{name}."
                moments = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
                on_cpu = {"step"} if self.device.type == "cpu" else set()
                self.adam.state[values] = {
                    key: moment.clone().to("cpu" if key in on_cpu else self.device) for key, moment in moments.items()
                }
        self.silent, self.bar, self.sums = (tensors[key].to(self.device) for key in ("silent", "bar", "sums"))
        for key, value in plain.items():
            setattr(self, key, value)

    def _first(self) -> tuple[dict[str, Tensor], torch.device]:
        """Parameters to begin with, and where the rows are. The first rows give the scale and the decoder bias (their mean);
        decoder rows are random, of length 1, and the encoder is tied to them, shorter where all features fire at first."""
        plan = self.plan
        mean, device = self._calibrate()
        generator = torch.Generator().manual_seed(plan.seed)
        rows = torch.randn(plan.n_features, plan.d_in, generator=generator)
        rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        gain = min(1.0, 2 * plan.d_in / plan.n_features) if plan.kind in ("relu", "jumprelu") else 1.0
        found = {
            "encoder": rows * gain,
            "encoder_bias": torch.zeros(plan.n_features),
            "directions": rows,
            "decoder_bias": mean * self.scale,
        }
        if plan.kind == "jumprelu":
            found["threshold"] = torch.full((plan.n_features,), FIRST_THRESHOLD)
        return found, device

    def _calibrate(self) -> tuple[Tensor, torch.device]:
        """Sets scale and variance; returns the mean, (d_in,) float32 on the CPU, and the rows' device."""
        blocks, size = [], 0
        for block in self.activations.blocks(self.plan.batch, seed=self.plan.seed):
            blocks.append(block.detach().cpu())
            device = block.device
            size += len(block)
            if size >= max(CALIBRATION, self.plan.batch):
                break
        if not size:
            raise InputError("there are no activations to train on: the source gave no rows")
        sample = torch.cat(blocks).double()
        mean = sample.mean(0)
        variance = float((sample - mean).square().sum(1).mean())
        if not math.isfinite(variance):
            raise InputError(
                "the activations hold NaN or infinite values; leave out what makes them so, or use float32"
            )
        if variance <= 1e-12 * max(1e-12, float(mean.square().sum())):
            raise InputError("the activations are the same in every row; there is nothing to learn")
        self.scale = math.sqrt(self.plan.d_in / variance) if self.plan.normalise else 1.0
        self.variance = variance * self.scale**2
        return mean.float(), device

    def _move(self) -> None:
        """One step of Adam that keeps decoder rows at length 1 and thresholds at 0 or above."""
        rows = self.parameters["directions"]
        with torch.no_grad():
            grad = rows.grad
            if grad is not None:
                grad -= (grad * rows).sum(1, keepdim=True) * rows
        self.adam.step()
        with torch.no_grad():
            rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
            if "threshold" in self.parameters:
                self.parameters["threshold"].clamp_(min=0)

    def _revived(self, z: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        p, which = self.parameters, dead.nonzero()[:, 0]
        encoder, bias, rows = p["encoder"][which], p["encoder_bias"][which], p["directions"][which]
        return losses.revival(z, residual, encoder, bias, rows, p["decoder_bias"])

    @torch.no_grad()
    def _resample(self, z: Tensor, residual: Tensor, dead: Tensor) -> None:
        """Put dead features on rows drawn by their squared loss, with fresh moments (and weak encoders, Bricken et al.)."""
        which = dead.nonzero()[:, 0]
        if not len(which):
            return
        p = self.parameters
        generator = torch.Generator().manual_seed((self.plan.seed << 32) + self.step)
        odds = residual.square().sum(1).square().double().cpu() + 1e-30
        drawn = torch.multinomial(odds, len(which), replacement=True, generator=generator).to(self.device)
        rows = z[drawn] - p["decoder_bias"]
        rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
        norms = torch.linalg.vector_norm(p["encoder"], dim=1)
        living = norms[~dead].mean() if bool((~dead).any()) else norms.mean()
        gain = (
            0.2 if self.plan.kind in ("relu", "jumprelu") else 1.0
        )  # among the k largest only a whole one has a place
        fresh = {"directions": rows, "encoder": rows * (gain * living), "encoder_bias": torch.zeros_like(rows[:, 0])}
        if "threshold" in p:
            fresh["threshold"] = torch.full_like(rows[:, 0], FIRST_THRESHOLD)
        for name, values in fresh.items():
            p[name][which] = values
            for key in ("exp_avg", "exp_avg_sq"):
                self.adam.state[p[name]][key][which] = 0
        self.silent[which] = 0

    def _log(self) -> None:
        made = (self.step - 1) % LOG_EVERY + 1
        error, l0 = (self.sums / made).tolist()
        if not math.isfinite(error):
            raise ModelError(
                f"training diverged by step {self.step}: the error is {error}; use a smaller learning rate (lr=)"
            )
        dead = float((self.silent >= self.plan.dead_after).double().mean())
        self.history.append(
            {
                "step": self.step,
                "mse": error / self.scale**2,
                "explained_variance": 1 - error / self.variance,
                "l0": l0,
                "dead": dead,
            }
        )
        self.sums.zero_()


# --- one forward pass of each kind: reconstruction, how often each feature fired, sparsity penalty ---------------


def _sparse(trainer: Trainer, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, plan = trainer.parameters, trainer.plan
    with torch.no_grad():
        pre = torch.addmm(p["encoder_bias"], z - p["decoder_bias"], p["encoder"].T)
        if plan.kind == "topk":
            values, indices = pre.topk(plan.k, dim=1, sorted=False)
            values, at = values.reshape(-1).relu(), losses.Active.of_rows(indices)
        else:
            flat = losses.batch_largest(pre, plan.k * len(z), float(trainer.bar))
            values, at = pre.reshape(-1)[flat].relu(), losses.Active.of_flat(flat, len(z), plan.n_features)
            if bool((values > 0).any()):
                least = values[values > 0].min().double()
                trainer.bar = least if trainer.step == 0 else trainer.bar + BAR_RATE * (least - trainer.bar)
        fired = torch.bincount(at.features[values > 0], minlength=plan.n_features)
    explained = losses.sparse_reconstruction(
        z, p["encoder"], p["encoder_bias"], p["directions"], p["decoder_bias"], values, at
    )
    return explained, fired, z.new_zeros(())


def _relu(trainer: Trainer, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, plan = trainer.parameters, trainer.plan
    f = torch.addmm(p["encoder_bias"], z - p["decoder_bias"], p["encoder"].T).relu()
    penalty = plan.sparsity_at(trainer.step) * math.sqrt(plan.d_in) * f.sum() / len(z)
    return torch.addmm(p["decoder_bias"], f, p["directions"]), (f > 0).sum(0), penalty


def _jumprelu(trainer: Trainer, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, plan = trainer.parameters, trainer.plan
    pre = torch.addmm(p["encoder_bias"], z - p["decoder_bias"], p["encoder"].T).relu()
    f = losses.jumprelu(pre, p["threshold"], WIDTH)
    l0 = losses.active_count(pre, p["threshold"], WIDTH).mean()
    penalty = plan.sparsity_at(trainer.step) * plan.d_in * (l0 / plan.k - 1).square()
    return torch.addmm(p["decoder_bias"], f, p["directions"]), (f > 0).sum(0), penalty


FORWARD: dict[str, Callable[[Trainer, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "topk": _sparse,
    "batchtopk": _sparse,
    "relu": _relu,
    "jumprelu": _jumprelu,
}
