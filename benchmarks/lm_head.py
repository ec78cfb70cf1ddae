"""Top 20 tokens at both ends of every neuron's row of logits, beside the chunked matrix product with torch.topk.

    python benchmarks/lm_head.py [--layers 12] [--rounds 5] [--threads 2] [--json FILE]
    python benchmarks/lm_head.py --memory            # peak memory above the loaded model, a process per variant
    python benchmarks/lm_head.py --gpu               # the shape of Llama 3.1 8B in bfloat16, random weights

GPT-2 shape, random weights: 3,072 neurons a layer of width 768, vocabulary 50,257. The whole public call is timed: norms,
moments of the head and strings included. TransformerLens's read-out (one end only, no norm) is measured where it is
installed, on one layer, and scaled up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from record import Peak, tokenizer_on_disk
from timing import interleaved, ratios

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import patchclamp as pc
from patchclamp.models.head import Head
from patchclamp.read.lm_head import Readout

K = 20
CHUNK = 512
LLAMA = (32 * 14_336, 4096, 128_256)  # neurons, width, vocabulary


def main() -> None:
    """Time the variants in turn, or measure the memory of one, or run the large shape on a GPU."""
    given = parse()
    torch.set_num_threads(given.threads)
    if given.gpu:
        shown(on_gpu(given.share, given.rounds), "product only", given.json)
        return
    if given.memory:
        memory(given)
        return
    model = gpt2(given.layers)
    variants = made(model)
    if given.only:
        with Peak() as peak:
            variants[given.only]()
        print(json.dumps({"mib": peak.above}))
        return
    times = interleaved(variants, given.rounds)
    found = {"ratios": ratios(times, "product + topk"), "seconds": {n: min(w for w, _ in t) for n, t in times.items()}}
    shown(found, "product + topk", given.json)
    peer(model)


def made(model: Any) -> dict[str, Callable[[], Any]]:
    """The variants by name."""
    weight = model.hf.lm_head.weight
    layers = [block.mlp.c_proj.weight for block in model.hf.transformer.h]
    model.fingerprint  # noqa: B018  kept with the model, and no part of reading tokens

    def product(ends: bool) -> list[Any]:
        kept = []
        for rows in layers:
            for start in range(0, len(rows), CHUNK):
                logits = rows[start : start + CHUNK] @ weight.T
                if ends:
                    kept.append((logits.topk(K), logits.topk(K, largest=False)))
        return kept

    return {
        "product + topk": lambda: product(True),
        "product only": lambda: product(False),
        "patchclamp": lambda: pc.read.tokens(model, k=K, norm="none", quiet=True),
        "patchclamp, norm folded": lambda: pc.read.tokens(model, k=K, quiet=True),
    }


def gpt2(layers: int) -> Any:
    """GPT-2 small's shape with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return pc.load(GPT2LMHeadModel(GPT2Config(n_layer=layers)), check=False)


def peer(model: Any) -> None:
    """TransformerLens's read-out of 1,024 neurons (one end) against their product with topk at both ends."""
    try:
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.tools.analysis.logit_lens import logit_readout
    except ImportError as problem:
        print(f"left out: {problem}", file=sys.stderr)
        return
    bridge = TransformerBridge.boot_transformers(
        "gpt2", hf_model=gpt2(1).hf, tokenizer=tokenizer_on_disk(), device="cpu"
    )
    rows, weight = model.hf.transformer.h[0].mlp.c_proj.weight[:1024], model.hf.lm_head.weight

    def plain() -> None:
        for start in range(0, len(rows), CHUNK):
            logits = rows[start : start + CHUNK] @ weight.T
            logits.topk(K), logits.topk(K, largest=False)

    def readout() -> None:
        logit_readout(bridge, rows, apply_ln=False, top_k=K)

    times = interleaved({"product + topk": plain, "TransformerLens": readout}, 5)
    print("TransformerLens logit_readout, 1,024 neurons, one end:", ratios(times, "product + topk")["TransformerLens"])


def memory(given: argparse.Namespace) -> None:
    """Peak memory of each variant above the loaded model, in a process of its own."""
    for name in ("product + topk", "patchclamp", "patchclamp, norm folded"):
        command = [
            sys.executable,
            __file__,
            "--layers",
            str(given.layers),
            "--threads",
            str(given.threads),
            "--only",
            name,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{name:28} {json.loads(done.stdout.splitlines()[-1])['mib']:6.0f} MiB above the loaded model")


def on_gpu(share: float, rounds: int) -> dict[str, Any]:
    """Every neuron of Llama 3.1 8B's shape (or a share of them) on the current CUDA device."""
    neurons, width, vocabulary = LLAMA
    neurons = int(neurons * share)
    matrix = torch.randn(vocabulary, width, device="cuda", dtype=torch.bfloat16) * 0.02
    rows = torch.randn(neurons, width, device="cuda", dtype=torch.bfloat16) * 0.02
    readout = Readout(Head(matrix, None, 1.0, None, None), K, "none", "dot", True, False, False)
    kept: list[Any] = []

    def product(ends: bool) -> None:
        for start in range(0, neurons, 4096):
            logits = rows[start : start + 4096] @ matrix.T
            if ends:
                kept[:] = [logits.topk(K), logits.topk(K, largest=False)]
        torch.cuda.synchronize()

    def ours() -> None:
        for part, _ in readout(rows, False):
            kept[:] = [part]
        torch.cuda.synchronize()

    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    started = time.perf_counter()
    ours()
    first, peak = time.perf_counter() - started, torch.cuda.max_memory_allocated() - base
    variants = {"product only": lambda: product(False), "product + topk": lambda: product(True), "patchclamp": ours}
    times = interleaved(variants, rounds)
    return {
        "ratios": ratios(times, "product only"),
        "seconds": {name: min(wall for wall, _ in each) for name, each in times.items()},
        "first_s": first,
        "peak_mb": peak / 2**20,
        "device": torch.cuda.get_device_name(),
    }


def shown(found: dict[str, Any], base: str, target: Path | None) -> None:
    """Print, and write as data where asked for."""
    for name, row in found["ratios"].items():
        print(
            f"{name:28} {found['seconds'][name]:7.2f} s   x{row['wall']:.3f} [{row['low']:.3f} .. {row['high']:.3f}] "
            f"CPU x{row['cpu']:.3f} of {base}"
        )
    for name in ("first_s", "peak_mb", "device"):
        if name in found:
            print(f"{name}: {found[name]}")
    if target is not None:
        target.write_text(json.dumps(found, indent=1))


def parse() -> argparse.Namespace:
    """Options of the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--layers", type=int, default=12)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--memory", action="store_true")
    options.add_argument("--gpu", action="store_true")
    options.add_argument("--share", type=float, default=1.0, help="share of the neurons, for a smaller GPU")
    options.add_argument("--only", default="", help=argparse.SUPPRESS)
    options.add_argument("--json", type=Path)
    return options.parse_args()


if __name__ == "__main__":
    main()
