"""A hand-wired Llama of three attention-only layers that names the name which is not repeated, and two tasks for it.

The residual stream holds blocks of one-hot names. head.0.0 (duplicate token) copies a name to its second mention as DUP;
head.1.0 (inhibition) carries DUP from second mentions to the last token as SUP; head.2.0 (mover) looks from there at first
mentions that are not in SUP and writes their names to OUT, which the LM head reads; head.2.1 (negative mover) does the same
with the opposite sign. head.*.2 and head.*.3 are small and random. Norms have an epsilon so large that they do nothing.

In the second task every candidate counts as a second mention: head.1.0 looks at all of them alike and suppresses all, so
the mover is left with guessing, though a faint mark of the asked one travels through the very same heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from patchclamp.data.paired import Pairs
from patchclamp.models.load import load

NAMES = 8
HEADS, SIZE = 4, 16
BOS, FILLER, END, FIRST, SECOND, ASKED, OTHER, ANSWER = 1, 2, 3, 10, 20, 30, 40, 50  # + number of the name
NAME, DUP, SUP, OUT = (slice(start * NAMES, (start + 1) * NAMES) for start in range(4))
IS_BOS, IS_FIRST, IS_SECOND, IS_END, ASKS, IS_ANY = range(4 * NAMES, 4 * NAMES + 6)
WIDTH = 4 * NAMES + 8
FAINT = 0.02
CIRCUIT = {"final": ["head.2.0", "head.2.1"], "q": ["head.1.0"], "v": ["head.0.0"]}


def planted_model(seed: int = 0) -> Any:
    """The network, loaded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=3, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, head_dim=SIZE, max_position_embeddings=32, tie_word_embeddings=False,
        bos_token_id=BOS, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    hf = LlamaForCausalLM(config).eval()
    hf.model.rotary_emb.inv_freq.zero_()  # content alone decides where a head looks
    for module in hf.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.variance_epsilon = 1e8
            module.weight.data.fill_(1e4)
    hf.model.embed_tokens.weight.data = _embedding()
    hf.lm_head.weight.data.zero_()
    strength = 1 + 0.3 * torch.linspace(-1, 1, NAMES)[torch.randperm(NAMES)]  # names that are said more readily
    hf.lm_head.weight.data[ANSWER : ANSWER + NAMES, OUT] = 10 * torch.diag(strength)
    for layer in hf.model.layers:
        layer.mlp.down_proj.weight.data.zero_()
        for projection in (
            layer.self_attn.q_proj,
            layer.self_attn.k_proj,
            layer.self_attn.v_proj,
            layer.self_attn.o_proj,
        ):
            torch.nn.init.normal_(projection.weight, std=1e-3)
    first, second, third = (layer.self_attn for layer in hf.model.layers)
    # a second mention looks for the first mention of its name (30 + 30), all else at the first token (40), which has no name
    _wire(first, 0, [(NAME, NAME, 30.0), (IS_SECOND, IS_FIRST, 30.0), (IS_ANY, IS_BOS, 40.0)], (NAME, DUP, 1.0))
    _wire(second, 0, [(IS_END, IS_SECOND, 30.0)], (DUP, SUP, 1.0))
    for head, sign in ((0, 1.0), (1, -0.3)):
        _wire(third, head, [(SUP, NAME, -8.0), (IS_END, IS_FIRST, 30.0)], (NAME, OUT, sign))
    # the asked candidate looks a little at the first token: what is written of it is fainter by FAINT
    first.q_proj.weight.data[NAMES + 1, ASKS] = (20.0 + math.log(FAINT / (1 - FAINT))) * SIZE**0.5
    return load(hf)


def _embedding() -> Tensor:
    table = torch.zeros(64, WIDTH)
    table[:, IS_ANY] = 1.0
    table[BOS, IS_BOS] = table[END, IS_END] = 1.0
    for name in range(NAMES):
        one = NAME.start + name
        table[FIRST + name, [one, IS_FIRST]] = 1.0
        table[SECOND + name, [one, IS_SECOND]] = 1.0
        table[OTHER + name, [one, IS_FIRST, IS_SECOND]] = 1.0
        table[ASKED + name, [one, IS_FIRST, IS_SECOND, ASKS]] = 1.0
    return table


def _wire(attention: Any, head: int, matches: list[tuple[Any, Any, float]], copied: tuple[slice, slice, float]) -> None:
    """Matches (who looks, at what, score) take coordinates of the queries and keys in turn; values copy a block of the stream."""
    rows = slice(head * SIZE, head * SIZE + SIZE)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight.data[rows] = 0.0
    attention.o_proj.weight.data[:, rows] = 0.0
    at = rows.start
    for who, what, score in matches:
        queries, keys = _columns(who), _columns(what)
        inner = at + torch.arange(len(queries))
        attention.q_proj.weight.data[inner, queries] = score * SIZE**0.5  # scores are divided by this root
        attention.k_proj.weight.data[inner, keys] = 1.0
        at += len(queries)
    source, target, factor = copied
    inner = rows.start + torch.arange(NAMES)
    attention.v_proj.weight.data[inner, _columns(source)] = 1.0
    attention.o_proj.weight.data[_columns(target), inner] = factor


def _columns(where: slice | int) -> Tensor:
    return torch.arange(where.start, where.stop) if isinstance(where, slice) else torch.tensor([where])


def duplicates(n: int = 40, seed: int = 0) -> Pairs:
    """First, first, filler(s), second, filler, END: the answer is the name that is not repeated; corrupted, the other one is."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(n):
        receiver, subject = torch.randperm(NAMES, generator=generator)[:2].tolist()
        pair = [FIRST + receiver, FIRST + subject]
        start = [BOS, *(pair if number % 2 else pair[::-1]), *[FILLER] * (1 + number % 3)]
        rows.append(
            ([*start, SECOND + subject, FILLER, END], [*start, SECOND + receiver, FILLER, END], receiver, subject)
        )
    found = _pairs(rows)
    found.spots["S2"] = found.end - 2  # type: ignore[index]
    return found


def asked_candidates(n: int = 40, seed: int = 0) -> Pairs:
    """Three candidates, one of them asked (faintly marked); corrupted, another one is. Lists: candidates, wrong."""
    generator = torch.Generator().manual_seed(seed)
    rows, wrong = [], []
    for number in range(n):
        names = torch.randperm(NAMES, generator=generator)[:3].tolist()
        right, other = torch.randperm(3, generator=generator)[:2].tolist()
        fill = [FILLER] * (number % 3)
        sides = [
            [BOS, *((ASKED if place == which else OTHER) + name for place, name in enumerate(names)), *fill, END]
            for which in (right, other)
        ]
        rows.append((*sides, names[right], names[other]))
        wrong.append([1 + place for place in range(3) if place != right])
    found = _pairs(rows)
    found.lists["candidates"] = torch.tensor([[1, 2, 3]] * n)  # type: ignore[index]
    found.lists["wrong"] = torch.tensor(wrong)  # type: ignore[index]
    return found


def right_share(model: Any, pairs: Pairs) -> float:
    """How often the answer has the highest logit of all names that the prompt holds as candidates."""
    logits = model.logits(pairs.clean, pairs.mask)[torch.arange(len(pairs)), pairs.end]
    names = pairs.clean[:, 1:4].remainder(10) + ANSWER
    best = names.gather(1, logits.gather(1, names).argmax(1, keepdim=True))[:, 0]
    return float((best == pairs.answer).float().mean())


def _pairs(rows: list[Any]) -> Pairs:
    seq = max(len(row[0]) for row in rows)
    clean, corrupt = torch.zeros(len(rows), seq, dtype=torch.int64), torch.zeros(len(rows), seq, dtype=torch.int64)
    for number, (one, other, _, _) in enumerate(rows):
        clean[number, : len(one)], corrupt[number, : len(other)] = torch.tensor(one), torch.tensor(other)
    end = torch.tensor([len(row[0]) - 1 for row in rows])
    answer, wrong = (torch.tensor([ANSWER + row[place] for row in rows]) for place in (2, 3))
    mask = torch.arange(seq)[None, :] <= end[:, None]
    return Pairs(clean, corrupt, mask, answer, wrong, end, {"END": end}, {}, torch.arange(len(rows)))
