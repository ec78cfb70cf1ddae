"""The demo model's training data: an endless stream of packed rows, cut into blocks that depend on the seed alone.

A block mixes passages of the texts with documents of generated items; block k is the same whenever and wherever it is
made, so a training run can stop and go on at any row. A row holds documents one after another; positions start again at
every document, which is how attention knows to stay inside one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from patchclamp.data.generate import GENERATORS, Item
from patchclamp.data.generate.items import UNSPACED, rng_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXT_SHARE = 0.44  # of the tokens; divided evenly over the languages


@dataclass(frozen=True)
class Stage:
    """The curricula's shares of the tokens from a block on, how much more an answer's tokens weigh in the loss, and which
    kinds of a curriculum are drawn (all where none are named).
    """

    first_block: int
    shares: Mapping[str, float]
    answer_weight: float = 1.0
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


# Repeated lists and pairs come first: the induction that they teach is what coloured objects build on, and alone they teach
# it within a million tokens. Facts are learnt by heart meanwhile. What has to be worked out (sums, ages, which colour) takes
# longer: it gets more room later, and weight where the answer stands, because most of its other tokens are random.
STAGES = (
    Stage(0, {"facts": 0.08, "culture": 0.04, "arithmetic": 0.06, "code": 0.02, "dates": 0.04, "manners": 0.02,
              "sentences": 0.04, "binding": 0.26}, answer_weight=3.0, kinds={"binding": ("repeat", "pairs")}),
    Stage(6, {"facts": 0.08, "culture": 0.04, "arithmetic": 0.11, "code": 0.03, "dates": 0.08, "manners": 0.02,
              "sentences": 0.02, "binding": 0.18}, answer_weight=6.0),
    Stage(14, {"facts": 0.05, "culture": 0.03, "arithmetic": 0.13, "code": 0.02, "dates": 0.12, "manners": 0.02,
               "sentences": 0.02, "binding": 0.17}, answer_weight=6.0),
    Stage(19, {"facts": 0.05, "culture": 0.03, "arithmetic": 0.18, "code": 0.03, "dates": 0.18, "manners": 0.02,
               "sentences": 0.02, "binding": 0.05}, answer_weight=6.0),
    Stage(21, {"facts": 0.04, "culture": 0.02, "arithmetic": 0.26, "code": 0.02, "dates": 0.17, "manners": 0.01,
               "sentences": 0.01, "binding": 0.03}, answer_weight=6.0),
)  # fmt: skip
BLOCK_TOKENS = 500_000
VERSES_PER_PASSAGE = 5
MAX_ITEMS_PER_DOCUMENT = 5
HELD_OUT_LINES = 0.02  # the last lines of every text, never trained on


def split_lines(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training lines and held-out lines (the last 2%, at least one)."""
    n_held = max(1, round(len(lines) * HELD_OUT_LINES))
    return list(lines[:-n_held]), list(lines[-n_held:])


Document = tuple[list[int], list[float]]  # token ids and the weight of each in the loss


@dataclass
class Mixture:
    """Blocks of packed rows. texts: language -> training lines, in reading order (line k need not be parallel)."""

    texts: Mapping[str, Sequence[str]]
    tokenizer: PreTrainedTokenizerFast
    seed: int = 0
    row_length: int = 256
    block_tokens: int = BLOCK_TOKENS
    _lengths: dict[str, float] = field(default_factory=dict, init=False)
    _passages: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._bos = int(self.tokenizer.bos_token_id)
        self._eos = int(self.tokenizer.eos_token_id)
        for name in GENERATORS:
            probe = list(islice(GENERATORS[name](seed=self.seed), 400))
            self._lengths[name] = sum(len(ids) for ids, _ in self._encode_items(probe, 1.0)) / len(probe)
        for language, lines in self.texts.items():
            probe_lines = self._encode([" ".join(lines[i] for i in range(0, len(lines), max(1, len(lines) // 200)))])[0]
            mean = len(probe_lines) / len(range(0, len(lines), max(1, len(lines) // 200))) * VERSES_PER_PASSAGE
            share = TEXT_SHARE / len(self.texts)
            self._passages[language] = max(1, round(share * self.block_tokens / mean))

    def block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and loss weights of block `number`, each (n_rows, row_length), int64 and float32.

        Documents stand in random order; the ragged end is dropped.
        """
        stage = max((stage for stage in STAGES if stage.first_block <= number), key=lambda stage: stage.first_block)
        documents = [ids for language in self.texts for ids in self._text_documents(language, number)]
        for name in stage.shares:
            documents += self._item_documents(name, number, stage)
        rng_for("block", self.seed, number).shuffle(documents)
        ids = np.fromiter((i for ids, _ in documents for i in (self._bos, *ids, self._eos)), dtype=np.int64)
        weights = np.fromiter((w for _, weights in documents for w in (1.0, *weights, 1.0)), dtype=np.float32)
        n_rows = len(ids) // self.row_length
        used, shape = n_rows * self.row_length, (n_rows, self.row_length)
        return ids[:used].reshape(shape), weights[:used].reshape(shape)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Position of every token in its document (from 0 at BOS, or at a row's start), same shape as rows."""
        index = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
        starts = np.where(rows == self._bos, index, 0)
        return index - np.maximum.accumulate(starts, axis=1)

    def _text_documents(self, language: str, number: int) -> list[Document]:
        """Passages number*n .. of an endless pass over the text that is cut and shuffled anew in every epoch."""
        wanted, lines = self._passages[language], self.texts[language]
        joiner = "" if language in UNSPACED else " "
        per_epoch = max(1, (len(lines) - VERSES_PER_PASSAGE + 1) // VERSES_PER_PASSAGE)
        passages, orders = [], {}
        for place in range(number * wanted, (number + 1) * wanted):
            epoch, rank = divmod(place, per_epoch)
            if epoch not in orders:
                rng = rng_for("passages", self.seed, language, epoch)
                orders[epoch] = (rng.randrange(VERSES_PER_PASSAGE), rng.sample(range(per_epoch), per_epoch))
            offset, order = orders[epoch]
            start = offset + order[rank] * VERSES_PER_PASSAGE
            passages.append(joiner.join(lines[start : start + VERSES_PER_PASSAGE]))
        return [(ids, [1.0] * len(ids)) for ids in self._encode(passages)]

    def _item_documents(self, name: str, number: int, stage: Stage) -> list[Document]:
        """Items of one curriculum, one to five of the same language to a document, a line break between them."""
        rng = rng_for("documents", self.seed, name, number)
        count = round(stage.shares[name] * self.block_tokens / (self._lengths[name] + 1.5))
        groups: dict[str, list[Document]] = {}
        items = list(islice(self._endless(name, number, stage.kinds.get(name)), count))
        for item, encoded in zip(items, self._encode_items(items, stage.answer_weight), strict=True):
            groups.setdefault(item.labels["language"], []).append(encoded)
        line_break = self._encode(["\n"])[0]
        documents = []
        for group in groups.values():
            while group:
                size = min(rng.randint(1, MAX_ITEMS_PER_DOCUMENT), len(group))
                taken, group = group[:size], group[size:]
                ids, weights = list(taken[0][0]), list(taken[0][1])
                for more_ids, more_weights in taken[1:]:
                    ids += line_break + more_ids
                    weights += [1.0] * len(line_break) + more_weights
                documents.append((ids, weights))
        return documents

    def _endless(self, name: str, number: int, kinds: tuple[str, ...] | None) -> Iterator[Item]:
        """Pass after pass of a generator, each with its own seed."""
        turn, chosen = 0, {} if kinds is None else {"kinds": kinds}
        while True:
            seed = rng_for("pass", self.seed, name, number, turn).getrandbits(32)
            yield from GENERATORS[name](seed=seed, **chosen)
            turn += 1

    def _encode_items(self, items: Sequence[Item], answer_weight: float) -> list[Document]:
        """Prompt, answer and tail are encoded apart: no token straddles the place where an answer starts."""
        encoded = iter(self._encode([segment for item in items for segment in item.segments]))
        documents = []
        for _ in items:
            prompt, answer, tail = next(encoded), next(encoded), next(encoded)
            weights = [1.0] * len(prompt) + [answer_weight] * len(answer) + [1.0] * len(tail)
            documents.append((prompt + answer + tail, weights))
        return documents

    def _encode(self, texts: list[str]) -> list[list[int]]:
        backend = self.tokenizer.backend_tokenizer
        return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]
