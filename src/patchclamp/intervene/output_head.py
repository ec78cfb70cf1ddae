"""The output matrix of a model: its singular directions, the states that enter it, and untying it from the embedding.

W = U S V^T with W (vocabulary, d): S and V come from the eigen-decomposition of W^T W in float64 (d x d), so that no
vocabulary-sized factor is ever made. Squaring halves the digits: directions whose singular value lies below 1e-7 of the
largest are rounding, and are flagged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patchclamp.core.errors import InputError, ModelError
from patchclamp.data.batches import SpecialTokens, Tokens, batches
from patchclamp.models.hooks import changed_layers

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

RELIABLE = 1e-7
_ROWS = 8192
Spectrum = tuple[NDArray[np.float64], NDArray[np.float64]]

# model -> (address, version) of its output matrix, singular values and vectors
_KNOWN: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], Spectrum]] = WeakKeyDictionary()
_PLAIN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # model -> whether states enter its matrix as they are
_PROBE, _CLOSE = (2, 8), 1e-2  # ids of the check, and what rounding may do to a logit, as a share of the largest


def output_weight(model: LanguageModel) -> nn.Parameter:
    """The output matrix (vocabulary, d_model) as the model holds it, tied or not.

    ModelError where there is none, or where it is no plain matrix of numbers (quantised, offloaded, an adapter).
    """
    head = model.hf.get_output_embeddings()
    weight = getattr(head, "weight", None)
    kind = type(model.hf).__name__
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2:
        raise ModelError(
            f"{kind} has no output matrix of its own (found {type(head).__name__}); it can't be decomposed"
        )
    if weight.is_meta:
        raise ModelError(f"the output matrix of {kind} is offloaded; load the model without device_map to read it")
    if not weight.is_floating_point():
        raise ModelError(f"the output matrix of {kind} is quantised ({weight.dtype}); load it in float32 or bfloat16")
    if weight.shape[1] != model.anatomy.d_model:
        raise ModelError(
            f"the output matrix of {kind} is {tuple(weight.shape)}, but its states have {model.anatomy.d_model} numbers: "
            "something stands between them"
        )
    if not _states_enter(model, head):
        raise ModelError(
            f"between the states of {kind} and its output matrix stands something that is not linear; directions of the "
            "matrix are not directions of the states there"
        )
    return weight


def _states_enter(model: LanguageModel, head: nn.Module) -> bool:
    """Whether logits are what the head makes of the trunk's output, but for a scale and soft cap; tried once.

    Not tried while something is changed: then it is taken for granted.
    """
    if model.hf not in _PLAIN:
        if changed_layers(model):
            return True
        text = model.hf.config.get_text_config(decoder=True)
        ids = torch.randint(0, int(text.vocab_size), _PROBE, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            found = head(model.trunk(ids)).double()
        _PLAIN[model.hf] = _same_up_to_scale(found, model.logits(ids).double(), model.anatomy)
    return _PLAIN[model.hf]


def _same_up_to_scale(found: Tensor, wanted: Tensor, anatomy: Any) -> bool:
    """Whether logits are a multiple of what a head gave, soft-capped if the model does that."""
    if found.shape != wanted.shape:
        return False
    if anatomy.soft_cap is not None:
        found = anatomy.soft_cap * torch.tanh(found * anatomy.logit_scale / anatomy.soft_cap)
    factor = (found * wanted).sum() / (found * found).sum().clamp_min(1e-30)
    return bool((factor * found - wanted).abs().max() <= _CLOSE * wanted.abs().max())


def spectrum(weight: Tensor | NDArray[Any]) -> Spectrum:
    """Singular values (d,), falling, and right singular vectors (d, d), row i is v_i, both float64; signs as they come."""
    w = torch.as_tensor(weight).detach()
    gram = torch.zeros(w.shape[1], w.shape[1], dtype=torch.float64, device=w.device)
    for part in w.split(_ROWS):
        wide = part.double()
        gram += wide.T @ wide
    if not bool(torch.isfinite(gram).all()):
        raise InputError("the output matrix holds values that are not finite")
    values, vectors = torch.linalg.eigh(gram)
    sigma = values.clamp_min(0).sqrt().flip(0)
    return sigma.cpu().numpy(), np.ascontiguousarray(vectors.flip(1).T.cpu().numpy())


def output_spectrum(model: LanguageModel) -> Spectrum:
    """`spectrum` of a model's output matrix; worked out once per matrix."""
    weight = output_weight(model)
    key = (weight.data_ptr(), weight._version)
    known = _KNOWN.get(model.hf)
    if known is None or known[0] != key:
        known = (key, spectrum(weight))
        _KNOWN[model.hf] = known
    return known[1]


def end_states(model: LanguageModel, prompts: Sequence[str], *, batch_tokens: int = 4096) -> NDArray[np.float64]:
    """What enters the output matrix at the last token of each prompt, (n, d) float64: the states before an answer.

    Special tokens stand before a prompt as the tokenizer puts them, once. InputError for a prompt without tokens.
    """
    before = SpecialTokens.of(model.tokenizer).before
    rows = []
    for number, text in enumerate(prompts):
        ids = tuple(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        rows.append(ids if ids[: len(before)] == before else before + ids)
        if not rows[-1]:
            raise InputError(f"prompt {number} has no tokens; there is no state at its end")
    return states_at(model, rows, [len(row) - 1 for row in rows], batch_tokens=batch_tokens)


def states_at(
    model: LanguageModel, rows: Sequence[Sequence[int]], places: Sequence[int], *, batch_tokens: int = 4096
) -> NDArray[np.float64]:
    """What enters the output matrix at one position of each row of ids, (n, d) float64, under whatever changes are active."""
    pieces = []
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        if not 0 <= place < len(row):
            raise InputError(f"position {place} of row {number} asked for, which has {len(row)} tokens")
        if len(row) > model.max_length:
            raise InputError(f"row {number} has {len(row)} tokens; this model takes {model.max_length} at once")
        pieces.append(Tokens(list(row), None, number, 0))
    found = np.zeros((len(pieces), model.anatomy.d_model))
    where = torch.as_tensor(list(places))
    for batch in batches(pieces, token_budget=batch_tokens, pad_id=model.pad_id):
        placed = batch.to(model.device)
        hidden = model.trunk(placed.input_ids, placed.attention_mask)
        mine = where[batch.document].to(hidden.device)
        chosen = hidden[torch.arange(len(mine), device=hidden.device), mine]
        found[batch.document.numpy()] = chosen.double().cpu().numpy()
    return found


def untie(hf: Any) -> dict[str, Any]:
    """Give a model an output matrix of its own, in place, equal to the embedding it was tied to.

    Returns the config attributes that changed: with them plain transformers loads the checkpoint untied. {} where
    nothing was tied. ModelError where the architecture ties whatever its config says.
    """
    weight = hf.get_output_embeddings().weight
    names = [name for name, value in hf.named_parameters(remove_duplicate=False) if value is weight]
    if len(names) < 2:
        return {}
    changes = _untied_config(hf.config)
    trial_config = copy.deepcopy(hf.config)
    for config in _configs(trial_config):
        config.tie_word_embeddings = False
    if not changes or _ties(type(hf), trial_config):
        raise ModelError(
            f"{type(hf).__name__} ties its output matrix to {names[0]} whatever its config says, so a checkpoint can't hold "
            "an edit of the output matrix alone; apply the intervention while the model runs instead"
        )
    for config in _configs(hf.config):
        config.tie_word_embeddings = False
    hf.get_output_embeddings().weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    for module in hf.modules():  # what save_pretrained would leave out as a copy of another
        tied = getattr(module, "all_tied_weights_keys", None)
        if isinstance(tied, dict):
            for name in [key for key, source in tied.items() if key in names or source in names]:
                del tied[name]
    return changes


def _configs(config: Any) -> list[Any]:
    """A config and the configs inside it that say whether embeddings are tied."""
    inner = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    found = [config, *(part for part in inner if part is not None)]
    return [part for part in found if hasattr(part, "tie_word_embeddings")]


def _untied_config(config: Any) -> dict[str, Any]:
    return {"tie_word_embeddings": False} if any(part.tie_word_embeddings for part in _configs(config)) else {}


def _ties(kind: Any, config: Any) -> bool:
    """Whether a model of this config shares its output matrix with another parameter; built without memory."""
    try:
        with torch.device("meta"):
            trial = kind(config)
    except Exception:  # a config that the architecture refuses, by whatever error, unties nothing
        return True
    weight = trial.get_output_embeddings().weight
    return sum(value is weight for _, value in trial.named_parameters(remove_duplicate=False)) > 1
