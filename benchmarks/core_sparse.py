"""What core neurons save when decoding: tokens per second of a Llama-shaped model with random weights, against plain generate().

    python benchmarks/core_sparse.py [--size 1b] [--dtype bfloat16] [--rounds 5] [--tokens 32] [--batch 1] [--json FILE]
    python benchmarks/core_sparse.py --offload     # MLP weights in a file that does not stay in memory

Variants run in turn in one process, the order rotated each round; a figure is the median of the paired ratios of a round. A
step's time is that between two new tokens, without the prompt and without the first step, which cuts the neurons out (told apart
as "cut"). On a busy machine the ratio of CPU time is the steadier one. Decoding one text is bound by the bytes of weights read
per token, so that the speed-up is at most

    1 / (1 - s (1 - share)),   s = bytes of the cut layers' MLPs / bytes of all weights read for a token.

The bar is 0.8 of that limit. With --offload the MLP weights are memory-mapped and their pages are dropped after every token, as
if the model were larger than memory: the plain model reads them all again for every token, the cut one keeps its parts. The limit
is then the plain model's step over the time in which the same model, wholly in memory, would read the bytes that are left.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

SIZES = {  # layers, d_model, neurons per layer, heads, key-value heads
    "tiny": (4, 256, 1024, 4, 2),
    "500m": (20, 1280, 5120, 20, 5),
    "1b": (16, 2048, 8192, 32, 8),
    "1.5b": (24, 2048, 8192, 32, 8),
}
VOCABULARY, SHARES = 32000, (0.4, 0.2)
RESIDENT = "plain, in memory"
MADV_DONTNEED = 4


def main() -> None:
    """Run the variants and print one JSON object."""
    given = _arguments()
    torch.set_num_threads(given.threads)
    model = random_llama(given.size, given.dtype)
    ids = torch.randint(3, VOCABULARY, (given.batch, given.prompt), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) if given.offload else None
        variants = {"plain": variant(model, ids, given.tokens, None, where)}
        for share in SHARES:
            variants[f"share {share:.0%}"] = variant(model, ids, given.tokens, share, where)
        if given.offload:
            variants[RESIDENT] = variant(model, ids, given.tokens, None, None)
        steps = measured(variants, given.rounds)
    whole, cut = traffic(model)
    found: dict[str, Any] = {
        "what": f"{given.size}, {given.dtype}, batch {given.batch}, prompt {given.prompt}, {given.tokens} new tokens",
        "mlp_share_of_bytes": round(cut / whole, 4),
        "read_gb_per_token": round(whole / 1e9, 3),
        "offload": given.offload,
    }
    resident = steps.get(RESIDENT, steps["plain"])
    found["memory_gb_per_s"] = round(whole / statistics.median(entry["step"] for entry in resident) / 1e9, 1)
    slower = statistics.median(a["step"] / b["step"] for a, b in zip(steps["plain"], resident, strict=True))
    for name, entries in steps.items():
        found[name] = summary(entries, steps["plain"], given.batch)
        if name.startswith("share"):
            left = 1 - cut / whole * (1 - float(name.split()[1].rstrip("%")) / 100)
            limit = slower / left  # what reading from a file costs the plain model is saved, too
            found[name] |= {"limit": round(limit, 3), "of_limit": round(found[name]["speed_up"] / limit, 3)}
    found |= {"threads": given.threads, "rounds": given.rounds, "load": round(os.getloadavg()[0], 1)}
    text = json.dumps(found, indent=1)
    print(text)
    if given.json:
        Path(given.json).write_text(text + "\n", encoding="utf-8")


def random_llama(size: str, dtype: str) -> Any:
    """A Llama-shaped LanguageModel with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from patchclamp.models.load import load

    layers, d_model, neurons, heads, kv = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=d_model, intermediate_size=neurons, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=4096, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        hf = LlamaForCausalLM(config).to(getattr(torch, dtype))
    hf = hf.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            weight.fill_(1.0) if "norm" in name else weight.normal_(0, 0.02, generator=generator)
        hf.model.rotary_emb.__init__(config)  # its buffers were on the meta device
    return load(hf, check=False)


def traffic(model: Any) -> tuple[int, int]:
    """Bytes of weights read for one token, and of the MLPs in the layers that are cut; of the embedding one row is read."""
    from patchclamp.generate.maps import layers_of, mlp_maps

    every = sum(weight.numel() * weight.element_size() for weight in model.hf.parameters())
    embed = model.hf.get_input_embeddings().weight
    maps = mlp_maps(model, layers_of(model.anatomy.n_layers, (0.1, 1.0)))
    return every - embed.numel() * embed.element_size(), sum(one.bytes for one in maps)


def variant(model: Any, ids: torch.Tensor, tokens: int, share: float | None, folder: Path | None) -> Callable[[], Any]:
    """A function that generates once and gives {"prompt", "cut", "step"} seconds."""

    def once() -> dict[str, float]:
        clock = Clock()
        with running(model, share, folder) as sparse:
            clock.drop = dropper(model, folder)
            started = time.perf_counter()
            with torch.no_grad():
                model.hf.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                    pad_token_id=0, stopping_criteria=[clock],
                )  # fmt: skip
            spent = 0.0 if sparse is None else sparse.seconds["choose"] + sparse.seconds["cut"]
        wall, busy = (statistics.median(clock.steps(at)) for at in (0, 1))
        return {"prompt": clock.entered[0][0] - started, "cut": spent, "step": wall, "cpu": busy}

    return once


@contextlib.contextmanager
def running(model: Any, share: float | None, folder: Path | None) -> Iterator[Any]:
    from patchclamp.generate import core_sparse, mlp_offloaded

    if share is not None:
        with core_sparse(model, share=share, offload=folder) as sparse:
            yield sparse
    elif folder is not None:
        with mlp_offloaded(model, folder, layers=(0.1, 1.0)):
            yield None
    else:
        yield None


class Clock:
    """A stopping criterion that never stops: it notes when every token was there, and forgets mapped pages on the way."""

    def __init__(self) -> None:
        self.entered: list[tuple[float, float]] = []  # wall and CPU seconds
        self.left: list[tuple[float, float]] = []
        self.drop: Callable[[], None] = lambda: None

    def __call__(self, ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        self.entered.append((time.perf_counter(), time.process_time()))
        self.drop()
        self.left.append((time.perf_counter(), time.process_time()))
        return torch.zeros(len(ids), dtype=torch.bool)

    def steps(self, which: int) -> list[float]:
        """Wall (0) or CPU (1) seconds between new tokens, from the second on: the first step cuts the neurons out."""
        return [into[which] - out[which] for out, into in zip(self.left[1:], self.entered[2:], strict=False)]


def dropper(model: Any, folder: Path | None) -> Callable[[], None]:
    """What makes the system forget the pages of the mapped weights."""
    if folder is None:
        return lambda: None
    (path,) = folder.glob("*.safetensors")
    libc = ctypes.CDLL(None, use_errno=True)

    def drop() -> None:
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            if str(path) in line:
                start, stop = (int(part, 16) for part in line.split()[0].split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), MADV_DONTNEED)
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return drop


def measured(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Every variant's times per round, after one warm-up; the order rotates."""
    names = list(variants)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    variants[names[-1]]()
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(variants[name]())
    return found


def summary(entries: list[dict[str, float]], plain: list[dict[str, float]], batch: int) -> dict[str, Any]:
    ratios, busy = (
        [base[key] / entry[key] for entry, base in zip(entries, plain, strict=True)] for key in ("step", "cpu")
    )
    step, prompt, cut = (statistics.median(entry[key] for entry in entries) for key in ("step", "prompt", "cut"))
    return {
        "tokens_per_s": round(batch / step, 2), "step_ms": round(step * 1e3, 2), "prompt_ms": round(prompt * 1e3, 1),
        "cut_ms": round(cut * 1e3, 1), "speed_up": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3), "high": round(max(ratios), 3), "speed_up_cpu": round(statistics.median(busy), 3),
    }  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    for name, default in (("--rounds", 5), ("--tokens", 32), ("--prompt", 128), ("--batch", 1), ("--threads", 2)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
