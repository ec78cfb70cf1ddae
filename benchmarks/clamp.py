"""What a clamp costs: 1,000 random neurons of a GPT-2-shaped model held at 0, perplexity of 512 tokens.

Variants: plain; clamp by hook; a weight edit made beforehand; and for comparison the shortest hand-written hook.
They run in turn, the order rotated each round; a ratio is the median of the paired ratios to plain of the same round,
of wall time and of CPU time (the steadier one on a busy machine). With --effect also: an effect of one late layer with
3 controls, with and without reuse of the prefix.
Bars: hook <= 1.03, edit <= 1.01, equal losses. Run: python benchmarks/clamp.py [--rounds 9] [--threads 2] [--effect]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from timing import interleaved, ratios

LAYERS, WIDTH, VOCABULARY, BATCH, LENGTH, UNITS = 12, 768, 50257, 4, 128, 1000


def main() -> None:
    """Run the variants and print one JSON object."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--effect", action="store_true", help="also time an effect with and without prefix reuse")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)

    from patchclamp.intervene import clamp, edit
    from patchclamp.models.units import UnitSet

    model = random_gpt2()
    chosen = torch.randperm(LAYERS * 4 * WIDTH, generator=torch.Generator().manual_seed(3))[:UNITS]
    units = UnitSet.at(model, "mlp", chosen.numpy())
    edited = edit(model, units, "ablate").model
    batch = random_batch()
    losses: dict[str, float] = {}

    def plain() -> None:
        losses["plain"] = loss(model, batch)

    def hook() -> None:
        with clamp(model, units, to=0.0):
            losses["clamp by hook"] = loss(model, batch)

    def by_hand() -> None:
        with hand_hooks(model, units):
            losses["hand-written hook"] = loss(model, batch)

    def weights() -> None:
        losses["weight edit"] = loss(edited, batch)

    variants = {"plain": plain, "clamp by hook": hook, "hand-written hook": by_hand, "weight edit": weights}
    times = interleaved(variants, given.rounds)
    result = {
        "what": "perplexity of 512 tokens, 1,000 neurons at 0",
        "ratios": ratios(times, "plain"),
        "summed_loss": losses,
    }
    result |= {"threads": given.threads, "rounds": given.rounds, "load": os.getloadavg()[0]}
    if given.effect:
        result["effect of one late layer"] = prefix_reuse(model)
    print(json.dumps(result, indent=1))


def random_gpt2() -> Any:
    """A GPT-2-shaped LanguageModel with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from patchclamp.models.load import load

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=LAYERS, n_embd=WIDTH, n_head=WIDTH // 64, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0
    )
    return load(GPT2LMHeadModel(config), tokenizer=number_tokenizer())


def number_tokenizer() -> Any:
    """Words "0", "1", ... are their own ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def random_batch() -> Any:
    """512 random tokens, no padding."""
    from patchclamp.data.batches import Tokens, padded

    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    return padded([Tokens(row.tolist(), None, number, 0) for number, row in enumerate(ids)])


def loss(model: Any, batch: Any) -> float:
    """Summed negative log-likelihood, the way perplexity computes it."""
    from patchclamp.measure.likelihood import batch_sums

    return float(batch_sums(model.logits(batch.input_ids, batch.attention_mask), batch).sum())


@contextlib.contextmanager
def hand_hooks(model: Any, units: Any) -> Iterator[None]:
    """What a user would write: zero the columns of the down projection's input in place."""
    handles = []
    for layer in range(LAYERS):
        index = torch.tensor([unit.index for unit in units.layers([layer])])

        def zero(module: Any, args: Any, index: torch.Tensor = index) -> None:
            args[0][..., index] = 0

        handles.append(model.anatomy.down(layer).register_forward_pre_hook(zero))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def prefix_reuse(model: Any) -> dict[str, Any]:
    """Time of an effect of 20 neurons of layer 10 of 12 with 3 controls, with and without reuse of the prefix."""
    from patchclamp.data.corpora import corpus
    from patchclamp.measure import effect
    from patchclamp.models.units import UnitSet

    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2)).tolist()
    text = corpus(x=[" ".join(map(str, row)) for row in ids])
    units = UnitSet.of(model, [f"mlp.10.{index}" for index in range(20)])
    found = {}

    def run(reuse: bool) -> Callable[[], None]:
        def one() -> None:
            found[reuse] = effect(
                model, units, on=text, controls=3, permutations=99, resamples=50, reuse=reuse, quiet=True
            )

        return one

    times = interleaved({"whole": run(False), "reused": run(True)}, 3)
    return {"ratios": ratios(times, "whole"), "same_rows": found[True].rows == found[False].rows}


if __name__ == "__main__":
    main()
