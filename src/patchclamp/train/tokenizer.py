"""A byte-level BPE tokenizer, trained on labelled text and curricula so that each language gets the same say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

from patchclamp.data.generate import GENERATORS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
CONTEXT = 512
ITEMS_PER_GENERATOR = 12_000
ANSWER_REPEATS = {
    "facts": 6,
    "culture": 3,
}  # so that most answers become one token, which causal methods like


def train_tokenizer(
    texts: Mapping[str, Sequence[str]], *, vocab_size: int = 7168, seed: int = 0
) -> PreTrainedTokenizerFast:
    """Train on equally many bytes of each text, plus the generated curricula.

    Digits are split one by one. Ids 0, 1, 2 are pad, BOS and EOS; encoding a text puts BOS in front. Any string can be
    encoded and decoded back exactly, because the alphabet is the 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(texts, seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _sample(texts: Mapping[str, Sequence[str]], seed: int) -> Iterator[str]:
    budget = min(sum(len(line.encode()) for line in lines) for lines in texts.values())
    for lines in texts.values():
        yield from _first_bytes(lines, budget)
    for name, generator in GENERATORS.items():
        passes = (generator(seed=seed, count=ITEMS_PER_GENERATOR) for _ in range(ITEMS_PER_GENERATOR))
        for item in islice(chain.from_iterable(passes), ITEMS_PER_GENERATOR):
            yield from item.segments
            yield from [item.answer] * ANSWER_REPEATS.get(name, 0)


def _first_bytes(lines: Iterable[str], budget: int) -> Iterator[str]:
    used = 0
    for line in lines:
        used += len(line.encode())
        if used > budget:
            return
        yield line
