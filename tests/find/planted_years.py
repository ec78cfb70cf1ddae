"""A hand-wired Llama that prefers years to numbers in one unit, and stand-ins for recordings of paired stimuli.

`plant_years(folder)` writes a checkpoint with one token per year and the cue tokens Year and Number. Attention moves the cue to
the last token; every embedding has the same length, so that the norms only scale by a known constant. In layer 0,
with L(y) = ln(|y - R| + 1), the MLP's output is

- `mlp_out.0.8`: a + b L(y) after Year, nothing after Number, plus noise      (must be found)
- `mlp_out.0.9`: a + b L(y) after both, plus noise                            (tuned to years, prefers none)
- `mlp_out.0.10`: a + b L(y) after Number, nothing after Year, plus noise     (the mirror set)
- `mlp_out.0.11`: noise alone

and nothing elsewhere, nor in layer 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from patchclamp.models.units import Layout

A, B, REFERENCE = 2.0, 0.5, 2012
D_MODEL, LENGTH = 16, 12.0
YEAR, NUMBER, TUNED, BALANCE, NOISE_A, NOISE_B, SEEN_YEAR, SEEN_NUMBER = range(8)
U, V, W, X = 8, 9, 10, 11


def tuning(years: Sequence[int]) -> np.ndarray:
    """a + b ln(|y - R| + 1)."""
    return A + B * np.log(np.abs(np.asarray(years, dtype=float) - REFERENCE) + 1)


def plant_years(folder: Path, years: Sequence[int], *, noise: float = 0.05, seed: int = 0) -> Path:
    """Write the checkpoint and its tokenizer; returns the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "Year:", "Number:", *(str(year) for year in years)]
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=D_MODEL, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, hidden_act="relu", tie_word_embeddings=False, rms_norm_eps=1e-12,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.zero_()
        _wire_embeddings(model.get_input_embeddings().weight, years, noise, rng)
        _wire_block(model.model.layers[0])
    model.save_pretrained(folder)
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


def _wire_embeddings(table: torch.Tensor, years: Sequence[int], noise: float, rng: np.random.Generator) -> None:
    table[2, YEAR] = LENGTH
    table[3, NUMBER] = LENGTH
    for row, g in enumerate(tuning(years), start=4):
        vector = torch.zeros(D_MODEL)
        vector[TUNED] = float(g)
        vector[NOISE_A], vector[NOISE_B] = (float(value) for value in rng.normal(0, noise, 2))
        vector[BALANCE] = math.sqrt(LENGTH**2 - float((vector**2).sum()))
        table[row] = vector


def _wire_block(block: Any) -> None:
    """Uniform attention over two tokens writes half the cue; gates read the cue, the up projection what it lets through."""
    seen = 0.5 * math.sqrt(D_MODEL)  # the cue token's vector has length LENGTH, so its norm makes it sqrt(d_model)
    scale = math.sqrt(D_MODEL) / math.sqrt(LENGTH**2 + seen**2)  # of the norm before the MLP
    block.self_attn.v_proj.weight[0, YEAR] = block.self_attn.v_proj.weight[1, NUMBER] = 1.0
    block.self_attn.o_proj.weight[SEEN_YEAR, 0] = block.self_attn.o_proj.weight[SEEN_NUMBER, 1] = 1.0
    gate, up, down = (getattr(block.mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    one = 1 / (seen * scale**2)  # gate * up is then what the up projection's coordinate was before the norm
    neurons = [
        (SEEN_YEAR, TUNED, (U, V)), (SEEN_NUMBER, TUNED, (V, W)),
        (SEEN_YEAR, NOISE_A, (U, V, W, X)), (SEEN_NUMBER, NOISE_B, (U, V, W, X)),
    ]  # fmt: skip
    for neuron, (cue, read, written) in enumerate(neurons):
        gate[neuron, cue] = one
        up[neuron, read] = 1.0
        for coordinate in written:
            down[coordinate, neuron] = 1.0


class Pieces:
    """Rows of a pooled statistic in two pieces, as they come from two shards."""

    def __init__(self, values: np.ndarray) -> None:
        half = len(values) // 2
        self.pieces = [values[:half].astype(np.float32), values[half:].astype(np.float32)]


def recorded(widths: Sequence[int], **pooled: np.ndarray) -> Any:
    """A stand-in for a recording of site mlp_out: label -> last activations (documents, units)."""
    layout = Layout("mlp_out", tuple(widths))
    everywhere = np.ones(layout.total, dtype=bool)

    def get(statistic: str, label: str, site: str) -> Any:
        values = pooled[label]
        n = np.ones(len(values), dtype=np.int64)
        return SimpleNamespace(
            layout=layout, n=n, last=Pieces(values), units=np.arange(layout.total), recorded=everywhere
        )

    sites = {"mlp_out": {"widths": list(widths), "experts": [0] * len(widths)}}
    return SimpleNamespace(
        labels=tuple(pooled), statistics=("pooled",), layouts={"mlp_out": layout}, get=get, folder=None,
        model={"name": "stand-in", "fingerprint": "0" * 64, "sites": sites}, corpus={"fingerprint": "1"}, fingerprint="2",
    )  # fmt: skip
