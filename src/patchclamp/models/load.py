"""`load()` gives a `LanguageModel`: a Hugging Face model, its tokenizer and its anatomy, the numbers untouched."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError, ModelError
from patchclamp.models.anatomy import Anatomy
from patchclamp.models.discovery import find_anatomy
from patchclamp.models.units import Layout

if TYPE_CHECKING:
    from patchclamp.models.features import Dictionary

make_callable(__name__)

DEMO = Path(__file__).parent.parent / "demo_model"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}


def load(
    source: Any = "demo",
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    check: bool = True,
) -> LanguageModel:
    """Load a causal language model and find its anatomy.

    source: "demo", a hub id, a local folder, or a live `PreTrainedModel` (used as it is: no copy; set to eval mode
    and its weights to need no gradient). tokenizer: an object or a folder, where it isn't beside the model.
    dtype: "float32", "bfloat16", ...; by default the checkpoint's, float32 for the demo.
    device: where to put the whole model; device_map: how to spread it (as in transformers), not both.
    check: refuse NaN and infinite weights, and run `check_model` once (kept as `model.report`). Only safetensors are read.
    Raises InputError for a missing folder, ModelError for weights or a family that can't be used.
    """
    if device is not None and device_map is not None:
        raise InputError("give device or device_map, not both")
    if isinstance(source, LanguageModel):
        return source
    if isinstance(source, nn.Module):
        hf, name = getattr(source, "_orig_mod", source), ""
    else:
        name = str(source)
        hf, tokenizer = _from_disk(name, tokenizer, dtype, device_map, revision, trust_remote_code)
        dtype = None
    if dtype is not None or device is not None:
        hf = hf.to(device=device, dtype=_dtype(dtype))
    model = LanguageModel(hf, tokenizer, source=_lasting(name) or None)
    if check:
        refuse_bad_weights(hf)
        _self_check(model)
    return model


def _self_check(model: LanguageModel) -> None:
    """Refuse a model whose numbers change under observation; warn of one whose values move with padding or batch."""
    from patchclamp.models.selfcheck import check_model

    model.report = check_model(model)
    model.report.raise_errors()
    for check in model.report.warnings:
        warnings.warn(
            f"{model.name}: {check.name}: {check.said}; record it without padding (batch_tokens=1)", stacklevel=3
        )


class LanguageModel:
    """A causal language model to record, read and clamp.

    hf: the `PreTrainedModel`, in eval mode, weights without gradient. tokenizer: or None. anatomy: what was found.
    name: short name; source: where it was loaded from, None for a live model.
    """

    def __init__(self, hf: Any, tokenizer: Any = None, *, source: str | None = None) -> None:
        hf.eval()
        hf.requires_grad_(False)
        self.hf = hf
        self.tokenizer = tokenizer
        self.source = source
        self.anatomy: Anatomy = find_anatomy(hf)
        self.trunk_module: nn.Module = self.anatomy.module(self.anatomy.trunk)
        self.name = Path(source).name if source else str(hf.config.name_or_path or hf.config.model_type)
        self.report: Any = None
        self._takes = inspect.signature(self.trunk_module.forward).parameters
        # RoBERTa and kin number their positions from the padding ids, with an offset of their own
        own = any(hasattr(module, "create_position_ids_from_input_ids") for module in self.trunk_module.modules())
        self._wants_positions = "position_ids" in self._takes and not own

    def __repr__(self) -> str:
        shape = f"{self.anatomy.n_layers} layers, d_model {self.anatomy.d_model}"
        return f"LanguageModel({self.name}: {type(self.hf).__name__}, {shape}, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the embedding."""
        holder: Any = self.hf if self.anatomy.embed is None else self.anatomy.module(self.anatomy.embed)
        found: torch.device = next(holder.parameters()).device
        if found.type == "meta":  # offloaded: accelerate fetches the weights to this device when it is needed
            found = torch.device(holder._hf_hook.execution_device)
        return found

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.hf.dtype
        return dtype

    @functools.cached_property
    def max_length(self) -> int:
        """Longest input in tokens that the model was made for."""
        config = self.hf.config.get_text_config(decoder=True)
        limits = [getattr(config, key, None) for key in ("max_position_embeddings", "n_positions", "max_seq_len")]
        limits.append(getattr(self.tokenizer, "model_max_length", None))
        known = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < 10**8]
        return min(known, default=2048)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over architecture and all weights rounded to bfloat16: float32 and bfloat16 loads agree."""
        return fingerprint_of(self.hf)

    @property
    def layouts(self) -> dict[str, Layout]:
        """Site -> Layout of its units."""
        return self.anatomy.layouts

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Plain data that files store: name, type, fingerprint, source, dtype, and widths and experts of every site."""
        sites = {
            site: {"widths": list(layout.widths), "experts": list(layout.experts)}
            for site, layout in self.layouts.items()
        }
        found = {
            "name": self.name,
            "type": self.anatomy.model_type,
            "fingerprint": self.fingerprint,
            "source": self.source,
            "dtype": str(self.dtype).removeprefix("torch."),
            "forms": list(self.anatomy.forms),
            "sites": sites,
        }
        if self.anatomy.features:
            from patchclamp.models.feature_sites import features_identity

            found["features"] = features_identity(self.anatomy.features)
        return found

    def with_features(self, *dictionaries: Dictionary) -> LanguageModel:
        """This model with the features of dictionaries as further units: `sae.3.17` is feature 17 of the one of layer 3.

        The same weights and tokenizer; this object stays as it is. Dictionaries of one name on several layers form one
        site. Raises InputError for a dictionary that doesn't fit, MismatchError for one of another model.
        """
        from patchclamp.models.feature_sites import joined

        found = copy.copy(self)
        found.anatomy = replace(self.anatomy, features=joined(self, dictionaries))
        vars(found).pop("identity", None)
        return found

    @functools.cached_property
    def pad_id(self) -> int:
        """The id to fill batches with."""
        config = self.hf.config.get_text_config(decoder=True)
        keys = ("pad_token_id", "eos_token_id")
        candidates = [getattr(self.tokenizer, "pad_token_id", None), *(getattr(config, key, None) for key in keys)]
        for candidate in (*candidates, getattr(self.tokenizer, "eos_token_id", None)):
            chosen = candidate[0] if isinstance(candidate, list | tuple) and candidate else candidate
            if isinstance(chosen, int) and 0 <= chosen < config.vocab_size:
                return chosen
        return 0

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds."""
        return list(self._need_tokenizer()(text)["input_ids"])

    def inputs(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Any]:
        """Keyword arguments of a forward pass over (batch, seq) ids; positions count from each row's first token."""
        ids = torch.as_tensor(input_ids, device=self.device)
        if ids.dim() != 2 or not ids.numel():
            raise InputError(f"input_ids have shape {tuple(ids.shape)}; (batch, seq) with at least one token is needed")
        found: dict[str, Any] = {"input_ids": ids}
        if attention_mask is not None:
            mask = torch.as_tensor(attention_mask, device=self.device)
            if mask.shape != ids.shape:
                raise InputError(f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(ids.shape)}")
            mask = mask.long()
            found["attention_mask"] = mask
            if self._wants_positions and not bool(mask[:, 0].all()):
                found["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if "use_cache" in self._takes:
            found["use_cache"] = False
        return found

    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, grad: bool = False) -> Tensor:
        """(batch, seq, vocabulary) logits of the untouched forward pass; under whatever changes are active."""
        with torch.set_grad_enabled(True) if grad else torch.inference_mode():
            logits: Tensor = self.hf(**self.inputs(input_ids, attention_mask)).logits
        return logits

    def trunk(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, grad: bool = False) -> Tensor:
        """(batch, seq, d_model) last hidden state, after the final norm; the LM head is not computed."""
        with torch.set_grad_enabled(True) if grad else torch.inference_mode():
            hidden: Tensor = self.trunk_module(**self.inputs(input_ids, attention_mask))[0]
        return hidden

    def generate(self, prompts: str | Sequence[str], *, max_new_tokens: int = 50, **arguments: Any) -> list[str]:
        """Continue prompts (greedily unless told otherwise); gives the new text only, one per prompt.

        arguments: those of transformers' `generate`, such as do_sample, num_beams, temperature.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            return []
        rows = [self.tokenize(text) for text in texts]
        width = max(len(row) for row in rows)
        if width == 0:
            raise InputError("nothing to continue: every prompt is empty")
        ids = torch.full((len(rows), width), self.pad_id, device=self.device)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            if row:
                ids[number, width - len(row) :] = torch.tensor(row, device=self.device)
                mask[number, width - len(row) :] = 1
        settings = {"do_sample": False, "pad_token_id": self.pad_id, **arguments}
        with torch.no_grad():
            out = self.hf.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, **settings)
        new: list[str] = self._need_tokenizer().batch_decode(out[:, width:], skip_special_tokens=True)
        return new

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InputError(f"{self.name} came without a tokenizer; give one: load(..., tokenizer=...)")
        return self.tokenizer


def fingerprint_of(hf: Any) -> str:
    """SHA-256 (hex) over the model type and every parameter (shared ones once), rounded to bfloat16."""
    config = hf.config.get_text_config(decoder=True)
    keys = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "hidden_act",
    )
    digest = hashlib.sha256(str([hf.config.model_type, *((key, getattr(config, key, None)) for key in keys)]).encode())
    for name, weight in sorted(hf.named_parameters()):
        digest.update(f"{name}{list(weight.shape)}".encode())
        rounded = _in_memory(hf, name, weight).detach().to(torch.bfloat16).cpu().contiguous()
        digest.update(rounded.view(torch.int16).numpy().data.cast("B"))
    return digest.hexdigest()


def _in_memory(hf: nn.Module, name: str, weight: Tensor) -> Tensor:
    """A parameter's values, fetched from where accelerate keeps them if they are offloaded."""
    if not weight.is_meta:
        return weight
    owner, _, leaf = name.rpartition(".")
    hook: Any = getattr(hf.get_submodule(owner), "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        kept = getattr(one, "weights_map", None)
        if kept is not None:
            found: Tensor = kept[leaf]
            return found
    raise ModelError(f"the weight {name} is nowhere in memory; load the model without offloading to fingerprint it")


def refuse_bad_weights(hf: Any) -> None:
    """Raise ModelError naming the first parameter with a NaN or an infinity."""
    for name, weight in hf.named_parameters():
        if weight.is_meta or not weight.is_floating_point():
            continue
        if not bool(torch.isfinite(weight.sum(dtype=torch.float32))) and not bool(torch.isfinite(weight).all()):
            bad = int((~torch.isfinite(weight)).sum())
            raise ModelError(f"the weight {name} holds {bad} NaN or infinite values; the checkpoint is damaged")


def _from_disk(
    name: str, tokenizer: Any, dtype: Any, device_map: Any, revision: str | None, trust_remote_code: bool
) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    where = _located(name)
    wanted = _dtype("float32" if name == "demo" and dtype is None else dtype) or "auto"
    try:
        with quiet_on_small_screens():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where,
                dtype=wanted,
                device_map=device_map,
                revision=revision,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as problem:
        raise ModelError(f"can't load {name}: {_first_line(problem)}") from problem
    hf, info = loaded
    if absent := sorted(map(str, info["missing_keys"])):
        raise ModelError(
            f"{name} lacks {len(absent)} weights of a {type(hf).__name__}, such as {absent[0]}; "
            "they would have been filled with random numbers"
        )
    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        tokenizer = _tokenizer(str(tokenizer or where), revision, trust_remote_code, needed=tokenizer is not None)
    return hf, tokenizer


@contextlib.contextmanager
def quiet_on_small_screens() -> Iterator[None]:
    """No bars for loading and saving weights where nobody watches them."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _lasting(name: str) -> str:
    """A folder's absolute path, so that a result can open its model again from anywhere; other names as they are."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if name not in ("", "demo") and folder.is_dir() else name


def _located(name: str) -> str:
    """Folder or hub id to load; refuses missing folders and folders without safetensors."""
    folder = DEMO if name == "demo" else Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds no config.json; it is not a model folder")
        if not any(folder.glob("*.safetensors")):
            others = sorted(
                path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern)
            )
            what = f"only {', '.join(others)}, which would have to be unpickled" if others else "no weights"
            raise ModelError(f"{folder} holds {what}; convert the checkpoint to safetensors first")
        return str(folder)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)
    if name == "demo" or looks_local or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(f"no model folder at {folder}")
    return name


def _tokenizer(where: str, revision: str | None, trust_remote_code: bool, *, needed: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as problem:
        if needed:
            raise InputError(f"can't load a tokenizer from {where}: {_first_line(problem)}") from problem
        return None


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, DTYPES.get(dtype, dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype {dtype!r} given; use float32, bfloat16 or float16")
    return found


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
