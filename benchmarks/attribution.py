"""What attribution costs: gradient x activation of every MLP and q, k, v unit of a Llama-shaped model, 512 tokens in a batch.

Variants, in turn, the order rotated each round: plain (the whole forward pass, all logits), trunk (no LM head), attribution
(forward, backward, maximum over positions). A ratio is the median of the paired ratios to plain of the same round, of wall time
and of CPU time (the steadier one on a busy machine); smallest and largest beside it.
Bar: attribution <= 3.5 x plain. Run: python benchmarks/attribution.py [--rounds 9] [--threads 2] [--layers 8]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import torch

from timing import interleaved, ratios

BATCH, LENGTH, WIDTH, VOCABULARY = 4, 128, 768, 32000


def main() -> None:
    """Run the variants and print one JSON object."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--layers", type=int, default=8)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)

    from patchclamp.find.attribution import attribute

    model = random_llama(given.layers)
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    prompts, targets = ids.tolist(), [7] * BATCH
    sites = ("pre", "q", "k", "v")

    def attribution() -> None:
        for _ in attribute(model, prompts, targets, sites=sites, batch_tokens=BATCH * LENGTH):
            pass

    variants: dict[str, Callable[[], Any]] = {
        "plain": lambda: model.logits(ids),
        "trunk": lambda: model.trunk(ids),
        "attribution": attribution,
    }
    result = {
        "what": f"{BATCH} prompts of {LENGTH} tokens, {sum(model.layouts[site].total for site in sites):,} units",
        "ratios": ratios(interleaved(variants, given.rounds), "plain"),
        "threads": given.threads,
        "rounds": given.rounds,
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=1))


def random_llama(layers: int) -> Any:
    """A Llama-shaped LanguageModel with random weights; its head is a fair part of the cost, as in real models."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from patchclamp.models.load import load

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=2048, num_hidden_layers=layers,
        num_attention_heads=WIDTH // 64, num_key_value_heads=WIDTH // 192, max_position_embeddings=LENGTH,
    )  # fmt: skip
    return load(LlamaForCausalLM(config), check=False)


if __name__ == "__main__":
    main()
