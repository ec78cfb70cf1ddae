"""Training steps of sparse autoencoders: against a plain torch loop of the same maths, and against SAELens where installed.

    python benchmarks/sae.py [--kinds topk batchtopk jumprelu relu] [--d-in 512] [--features 8192] [--json FILE]

All variants see the same rows and do the same work per step: encode, keep what is active, decode, squared error, gradients,
decoder rows of length 1, Adam in float32, a count of how long features have been silent. The plain loop does it with dense
products and autograd, as one writes it down. SAELens runs its own trainer's step (its decoder is not normalised but rescaled).
Rounds are interleaved; ratios are paired within a round.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timing import interleaved, ratios

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from patchclamp.core.memory import kept_memory
from patchclamp.read.sae_losses import active_count, jumprelu
from patchclamp.read.sae_plan import Plan
from patchclamp.read.sae_training import WIDTH, Trainer
from patchclamp.record.activations import Activations

SPARSITY = {"relu": 0.3, "jumprelu": 1.0}


def main() -> None:
    """Time every kind; prints milliseconds per step and ratios."""
    given = parse()
    torch.manual_seed(0)
    device = torch.device(given.device)
    rows = torch.randn(8 * given.batch, given.d_in).to(device)
    batches = list(rows.split(given.batch))
    found = {}
    for kind in given.kinds:
        variants: dict[str, Callable[[Tensor], Any]] = {
            "plain torch": plain(kind, rows, given),
            "patchclamp": ours(kind, rows, given),
        }
        if (peer := sae_lens_step(kind, rows, given)) is not None:
            variants["sae-lens"] = peer
        runs = {name: several(step, batches, given.steps) for name, step in variants.items()}
        with kept_memory():
            times = interleaved(runs, given.rounds)
        found[kind] = ratios(times, "plain torch")
        for name, entry in found[kind].items():
            entry["ms_per_step"] = round(
                1000 * sorted(wall for wall, _ in times[name])[given.rounds // 2] / given.steps, 1
            )
            print(f"{kind:>10} {name:>12}: {entry['ms_per_step']:8.1f} ms a step, {entry['wall']:.3f} of plain torch "
                  f"[{entry['low']:.2f} .. {entry['high']:.2f}]", flush=True)  # fmt: skip
    if given.json:
        shape = {
            "d_in": given.d_in,
            "features": given.features,
            "k": given.k,
            "batch": given.batch,
            "device": given.device,
        }
        given.json.write_text(json.dumps({"shape": shape, "ratios": found}, indent=1))


def several(step: Callable[[Tensor], Any], batches: list[Tensor], steps: int) -> Callable[[], None]:
    def run() -> None:
        for number in range(steps):
            step(batches[number % len(batches)])
        if batches[0].is_cuda:
            torch.cuda.synchronize()

    return run


def ours(kind: str, rows: Tensor, given: argparse.Namespace) -> Callable[[Tensor], Any]:
    plan = Plan(
        kind, given.d_in, given.features, given.k, 10**6, given.batch, 3e-4, 0.0, 0.0, SPARSITY.get(kind, 0.0), 0.0, True,
        "aux", 10**9, 1 / 32, 0,
    )  # fmt: skip
    return Trainer(plan, Activations.of_tensor(rows, site="resid", layer=0), rows.device).learn


def plain(kind: str, rows: Tensor, given: argparse.Namespace) -> Callable[[Tensor], Any]:
    """The same step in dense torch."""
    directions = torch.randn(given.features, given.d_in, device=rows.device)
    directions /= directions.norm(dim=1, keepdim=True)
    encoder = directions.clone().T.contiguous()
    bias, below = (torch.zeros(size, device=rows.device) for size in (given.features, given.d_in))
    threshold = torch.full((given.features,), 0.05, device=rows.device)
    parameters = [directions, encoder, bias, below, threshold]
    for values in parameters:
        values.requires_grad_()
    adam = torch.optim.Adam(parameters, lr=3e-4, fused=True)
    silent = torch.zeros(given.features, dtype=torch.int64, device=rows.device)
    scale = (given.d_in / rows.var(0).sum()).sqrt()

    def step(x: Tensor) -> None:
        z = x * scale
        adam.zero_grad()
        pre, penalty = (z - below) @ encoder + bias, 0.0
        if kind == "topk":
            values, indices = pre.topk(given.k, dim=1)
            f = torch.zeros_like(pre).scatter(1, indices, values.relu())
        elif kind == "batchtopk":
            flat = pre.relu().reshape(-1)
            values, indices = flat.topk(given.k * len(z))
            f = torch.zeros_like(flat).scatter(0, indices, values).reshape(pre.shape)
        elif kind == "jumprelu":
            f = jumprelu(pre.relu(), threshold, WIDTH)
            l0 = active_count(pre.relu(), threshold, WIDTH).mean()
            penalty = given.d_in * (l0 / given.k - 1).square()
        else:
            f = pre.relu()
            penalty = 0.3 * given.d_in**0.5 * f.sum() / len(z)
        loss = (f @ directions + below - z).square().sum() / len(z) + penalty
        loss.backward()
        with torch.no_grad():
            directions.grad -= (directions.grad * directions).sum(1, keepdim=True) * directions
        adam.step()
        with torch.no_grad():
            directions.div_(directions.norm(dim=1, keepdim=True))
            silent.add_(len(z))
            silent[(f > 0).any(0)] = 0

    return step


def sae_lens_step(kind: str, rows: Tensor, given: argparse.Namespace) -> Callable[[Tensor], Any] | None:
    """One step of SAELens's trainer; None without sae-lens."""
    try:
        import sae_lens
        from sae_lens.config import LoggingConfig, SAETrainerConfig
    except ImportError:
        return None
    size = {"d_in": given.d_in, "d_sae": given.features, "device": given.device}
    sae: Any = {
        "topk": lambda: sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(**size, k=given.k)),
        "batchtopk": lambda: sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**size, k=given.k)),
        "jumprelu": lambda: sae_lens.JumpReLUTrainingSAE(sae_lens.JumpReLUTrainingSAEConfig(**size)),
        "relu": lambda: sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(**size)),
    }[kind]()
    config = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=given.batch, device=given.device, lr_end=3e-5,
        dead_feature_window=10**9, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = sae_lens.SAETrainer(cfg=config, sae=sae, data_provider=iter(()))
    return trainer.step


def parse() -> argparse.Namespace:
    """Options of the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kinds", nargs="+", default=["topk", "batchtopk", "jumprelu", "relu"])
    options.add_argument("--d-in", type=int, default=512)
    options.add_argument("--features", type=int, default=8192)
    options.add_argument("--k", type=int, default=32)
    options.add_argument("--batch", type=int, default=1024)
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--device", default="cpu")
    options.add_argument("--json", type=Path)
    return options.parse_args()


if __name__ == "__main__":
    main()
