"""What the demo model knows: loss per language on held-out lines, accuracy per skill on items it was not taught."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError
from patchclamp.data.generate import GENERATORS, Item
from patchclamp.data.generate.items import UNSPACED, rng_for
from patchclamp.train.demo import read_texts
from patchclamp.train.mixture import VERSES_PER_PASSAGE, split_lines

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# What each skill is examined on. `taught` is checked beside what was held out, so that the gap can be read off.
SPLITS = {
    "facts": ("train", "paraphrase", "transfer", "heldout"),
    "culture": ("train", "paraphrase", "transfer"),
    "arithmetic": ("train", "heldout"),
    "code": ("train", "heldout"),
    "dates": ("train", "heldout"),
    "manners": ("train", "heldout"),
    "binding": ("train", "heldout"),
    "sentences": ("train", "heldout"),
}
GROUP_BY = {
    "facts": ("language", "relation"), "culture": ("language", "relation"), "arithmetic": ("operation",), "code": (),
    "dates": ("kind",), "manners": ("language", "tone"), "binding": ("kind",),
    "sentences": ("language",),
}  # fmt: skip


def evaluate(
    model_dir: str | os.PathLike[str],
    texts: Mapping[str, str | os.PathLike[str]],
    *,
    items: int = 300,
    seed: int = 1,
    rows: int = 16,
) -> dict[str, Any]:
    """Examine a trained checkpoint; the weights are read as float32.

    texts: language -> the files it was trained on; the last 2% of the lines are read. items: at most this many per skill
    and split. Returns {"loss": {language: {"nats_per_token", "bits_per_byte", "tokens", "bytes"}},
    "skills": {skill: {split: {"exact", "choice", "chance", "n", "interval", "by": {label: {value: ...}}}}}}, where exact is
    the share of items whose greedy continuation is the answer and then ends, choice the share whose answer is the likeliest
    of the choices (sum of log-probabilities), chance what guessing would reach, interval the 95% Wilson interval of exact.
    Raises InputError for a missing model or text.
    """
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    if not (Path(model_dir) / "config.json").is_file():
        raise InputError(f"no model in {model_dir}: config.json is missing")
    if items < 1:
        raise InputError(f"items is {items}; at least 1 is needed")
    lines = read_texts(texts)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(model_dir), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32, local_files_only=True).eval()
    with torch.inference_mode():
        return {
            "loss": {name: text_loss(model, tokenizer, split_lines(t)[1], name, rows) for name, t in lines.items()},
            "skills": {
                skill: {split: skill_accuracy(model, tokenizer, skill, split, items, seed, rows) for split in splits}
                for skill, splits in SPLITS.items()
            },
        }


def text_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    lines: Sequence[str],
    language: str,
    rows: int = 16,
) -> dict[str, float]:
    """Mean loss over passages of five lines, each after BOS; tokens past the 256th of a passage are left out."""
    joiner = "" if language in UNSPACED else " "
    passages = [joiner.join(lines[i : i + VERSES_PER_PASSAGE]) for i in range(0, len(lines), VERSES_PER_PASSAGE)]
    nats, n_tokens, n_bytes = 0.0, 0, 0
    for start in range(0, len(passages), rows):
        ids = [tokenizer(passage).input_ids[:256] for passage in passages[start : start + rows]]
        for row, scores in zip(ids, _log_probabilities(model, tokenizer, ids), strict=True):
            nats -= float(scores.gather(1, _column(row[1:])).sum())
            n_tokens += len(row) - 1
            n_bytes += len(str(tokenizer.decode(row[1:])).encode())
    return {
        "nats_per_token": nats / n_tokens,
        "bits_per_byte": nats / math.log(2) / n_bytes,
        "tokens": n_tokens,
        "bytes": n_bytes,
    }


def skill_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    skill: str,
    split: str,
    items: int = 300,
    seed: int = 1,
    rows: int = 16,
) -> dict[str, Any]:
    """Accuracy on up to `items` items of one skill and split, whole and grouped by the skill's labels."""
    asked = list(islice(GENERATORS[skill](seed=seed, split=split), items))
    rng_for("exam", seed, skill, split).shuffle(asked)
    graded = list(_grade(model, tokenizer, asked, rows))
    result = _summary(graded)
    result["by"] = {
        label: {
            value: _summary([g for g in graded if g[0].labels[label] == value])
            for value in sorted({g[0].labels[label] for g in graded})
        }
        for label in GROUP_BY[skill]
    }
    return result


def _grade(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item], rows: int
) -> Iterator[tuple[Item, bool, bool]]:
    """(item, exact, choice right) for every item."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    line_end = encode("\n")[0]
    for start in range(0, len(items), rows):
        batch = items[start : start + rows]
        prompts = [[tokenizer.bos_token_id, *encode(item.prompt)] for item in batch]
        options = [[item.answer, *(c for c in item.choices if c != item.answer)] for item in batch]
        sequences = [
            prompt + encode(option) for prompt, choices in zip(prompts, options, strict=True) for option in choices
        ]
        scores = iter(zip(sequences, _log_probabilities(model, tokenizer, sequences, tail=True), strict=True))
        for item, prompt, choices in zip(batch, prompts, options, strict=True):
            ends = {line_end, tokenizer.eos_token_id, *encode(item.tail)[:1]}
            totals, exact = [], False
            for place, _ in enumerate(choices):
                row, table = next(scores)
                answer, table = row[len(prompt) :], table[len(prompt) - 1 :]
                totals.append(float(table[: len(answer)].gather(1, _column(answer)).sum()))
                if place == 0:
                    best = table.argmax(1).tolist()
                    exact = best[: len(answer)] == answer and best[len(answer)] in ends
            yield item, exact, totals[0] == max(totals)


def _summary(graded: Sequence[tuple[Item, bool, bool]]) -> dict[str, Any]:
    n, exact = len(graded), sum(right for _, right, _ in graded)
    return {
        "exact": exact / n,
        "interval": wilson(exact, n),
        "choice": sum(right for _, _, right in graded) / n,
        "chance": sum(1 / len(item.choices) for item, _, _ in graded) / n,
        "n": n,
    }


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927); z = 1.96 gives 95%."""
    share, spread = (
        successes / n,
        z * math.sqrt(successes / n * (1 - successes / n) / n + z * z / (4 * n * n)),
    )
    middle, scale = share + z * z / (2 * n), 1 + z * z / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _column(ids: Sequence[int]) -> torch.Tensor:
    import torch

    return torch.tensor(list(ids))[:, None]


def _log_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Sequence[int]],
    *,
    tail: bool = False,
) -> list[torch.Tensor]:
    """Per row (length - 1, vocab) log-probabilities of its next tokens; with `tail`, (length, vocab): what follows too."""
    import torch

    longest = max(len(row) for row in rows)
    padded = torch.full((len(rows), longest), int(tokenizer.pad_token_id))
    for place, row in enumerate(rows):
        padded[place, : len(row)] = torch.tensor(list(row))
    # padding is on the right, where causal attention never looks from a real token, so no mask is needed
    scores = (
        model(input_ids=padded, attention_mask=torch.ones_like(padded), use_cache=False).logits.float().log_softmax(-1)
    )
    return [scores[place, : len(row) if tail else len(row) - 1] for place, row in enumerate(rows)]
