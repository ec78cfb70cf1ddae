"""Hand-wired models in memory whose neurons tell two skills, or several topics, apart by construction.

Every word has an embedding of noise that all kinds of text share, so that text of any kind looks the same to a neuron that reads
noise only; one more coordinate per kind says which kind of text the word belongs to. Attention and the down projection write
nothing, so every layer sees the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

NOISE = 24
WORDS = 30


def noisy(
    kinds: Sequence[str],
    gates: Sequence[np.ndarray],
    *,
    ups: np.ndarray | None = None,
    noise: float = 1.0,
    seed: int = 0,
    act: str = "relu",
) -> Any:
    """A Llama whose layer i has the gate projection gates[i], (width, NOISE + kinds); the words' noise is normal, times `noise`.

    The coordinate NOISE + k is 1 on words of kind k and -1 on others. ups: (width, NOISE + kinds), by default every up projection
    is 1 (it reads a coordinate that is always 1). All embeddings have the same length, so that normalising keeps proportions.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from patchclamp.models.load import load

    size = NOISE + len(kinds) + 2  # one coordinate that is always 1, and one that makes all lengths the same
    hidden = size + size % 2
    width = len(gates[0])
    config = LlamaConfig(
        vocab_size=2 + len(kinds) * WORDS, hidden_size=hidden, intermediate_size=width, num_hidden_layers=len(gates),
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=128, hidden_act=act, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=None, eos_token_id=None, rms_norm_eps=1e-12,
    )  # fmt: skip
    torch.manual_seed(seed)  # what is not wired below has no effect, but decides the fingerprint
    model = LlamaForCausalLM(config).eval()
    rng = np.random.default_rng(seed)
    words = noise * rng.normal(size=(WORDS, NOISE))
    longest = float((words**2).sum(1).max()) + 1e-3
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.zero_()
        for kind in range(len(kinds)):
            for word in range(WORDS):
                row = table[2 + kind * WORDS + word]
                row[:NOISE] = torch.from_numpy(words[word])
                row[NOISE : NOISE + len(kinds)] = -1
                row[NOISE + kind] = 1
                row[NOISE + len(kinds)] = 1
                row[NOISE + len(kinds) + 1] = (longest - float((words[word] ** 2).sum())) ** 0.5
        for block, gate in zip(model.model.layers, gates, strict=True):
            for module in (block.self_attn.o_proj, block.mlp.down_proj, block.mlp.gate_proj, block.mlp.up_proj):
                module.weight.zero_()
            block.mlp.gate_proj.weight[:, : gate.shape[1]] = torch.from_numpy(gate).float()
            if ups is None:
                block.mlp.up_proj.weight[:, NOISE + len(kinds)] = 1
            else:
                block.mlp.up_proj.weight[:, : ups.shape[1]] = torch.from_numpy(ups).float()
    return load(model, tokenizer=tokenizer(kinds))


def text(kinds: Sequence[str], *, documents: int = 40, length: int = 20, seed: int = 1) -> dict[str, list[str]]:
    """Kind -> documents of random words of that kind."""
    rng = np.random.default_rng(seed)
    return {
        kind: [" ".join(f"{kind}{word}" for word in rng.integers(WORDS, size=length)) for _ in range(documents)]
        for kind in kinds
    }


def shifted(units: Sequence[int], width: int, kinds: int, *, kind: int, shift: float, seed: int) -> np.ndarray:
    """A gate projection of random readers of noise; some units are also moved by the indicator of one kind.

    shift: distance of the means on that kind and on others, in standard deviations of what the noise does.
    """
    gate = np.zeros((width, NOISE + kinds))
    gate[:, :NOISE] = np.random.default_rng(seed).normal(size=(width, NOISE))
    spread = np.sqrt((gate[:, :NOISE] ** 2).sum(1))
    gate[list(units), NOISE + kind] = shift / 2 * spread[list(units)]  # the indicator goes from -1 to 1
    return gate


def tokenizer(kinds: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", *(f"{kind}{word}" for kind in kinds for word in range(WORDS))]
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", model_max_length=128)
