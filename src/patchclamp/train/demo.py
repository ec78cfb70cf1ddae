"""The bundled demo model: a small Llama-type polyglot, trained from texts and generated curricula on a plain CPU.

`train` writes OUT/tokenizer, OUT/checkpoints, OUT/log.jsonl and, at the end, OUT/model, an ordinary Hugging Face folder.
The data order depends on the seed alone, so a stopped run resumes bit for bit on the same machine.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.core.files import sha256_text, write_json
from patchclamp.core.progress import progress as progress_bar
from patchclamp.train.checkpoints import load_checkpoint, save_checkpoint, saved_checkpoints
from patchclamp.train.mixture import Mixture, split_lines
from patchclamp.train.schedule import Schedule
from patchclamp.train.tokenizer import CONTEXT, train_tokenizer

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Recipe:
    """Sizes and learning rates. Defaults are the bundled model's."""

    hidden_size: int = 192
    layers: int = 6
    heads: int = 6
    intermediate_size: int = 640
    vocab_size: int = 7168
    row_length: int = 256
    rows_per_step: int = 16
    muon_lr: float = 5e-3  # for matrices inside blocks
    adam_lr: float = 3e-3  # for embeddings and norms
    weight_decay: float = 0.1
    warmup_steps: int = 100
    block_tokens: int = 500_000  # tokens mixed and shuffled together
    workers: int = 2  # equal parts of a step's rows, each computed by one thread
    bfloat16: bool = True  # forward pass under autocast; weights and optimizer stay float32

    @property
    def step_tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.row_length * self.rows_per_step


def train(
    texts: Mapping[str, str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    tokens: int = 16_000_000,
    max_minutes: float | None = None,
    resume: bool = False,
    recipe: Recipe | None = None,
    checkpoint_minutes: float = 5.0,
    stop_after_steps: int | None = None,
    quiet: bool = False,
) -> Path:
    """Train the demo model and return the folder of the finished checkpoint, `out`/model (float16 weights).

    texts: language -> UTF-8 file with one passage or verse per line; the last 2% of the lines are held out.
    tokens: how long to train. max_minutes: wall time over all sessions of the run; when three quarters of it are gone the
    final decay starts even if fewer tokens were seen. The tokens really trained are written to `out`/model/training.json;
    passing that number as `tokens` repeats the run without a clock.
    resume: go on from the newest checkpoint in `out` (start afresh if there is none). stop_after_steps: leave after that
    many steps in this session, with a checkpoint, as if interrupted.
    Raises InputError for missing or too short texts, an `out` that holds another run, or sizes that make no sense.
    """
    import torch

    recipe = recipe or Recipe()
    folder = Path(out)
    lines = read_texts(texts)
    if tokens < recipe.step_tokens:
        raise InputError(f"tokens={tokens} is less than one step; give at least {recipe.step_tokens}")
    if not 1 <= recipe.workers <= recipe.rows_per_step:
        raise InputError(f"workers={recipe.workers}; give 1 to {recipe.rows_per_step}, the rows of a step")
    identity = {
        "seed": seed,
        "recipe": asdict(recipe),
        "texts": {name: sha256_text("\n".join(t)) for name, t in lines.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, identity, resume)
    tokenizer = _tokenizer(folder, lines, recipe, seed)
    torch.manual_seed(seed)
    model = build_model(recipe, tokenizer)
    optimizers = _optimizers(model, recipe)
    schedule = Schedule(
        max(1, tokens // recipe.step_tokens),
        min(recipe.warmup_steps, max(1, tokens // recipe.step_tokens // 10)),
    )
    state: dict[str, Any] = {"step": 0, "block": 0, "row": 0, "minutes": 0.0, "total_steps": schedule.total_steps}
    newest = saved_checkpoints(folder / "checkpoints")[-1:]
    if newest:
        state = load_checkpoint(newest[0], model, optimizers)
        if state["shortened"]:
            schedule.total_steps = state["total_steps"]
    mixture = Mixture(
        {name: split_lines(t)[0] for name, t in lines.items()}, tokenizer, seed, recipe.row_length, recipe.block_tokens
    )
    done = _loop(
        model,
        optimizers,
        schedule,
        mixture,
        state,
        recipe,
        folder,
        max_minutes,
        checkpoint_minutes,
        stop_after_steps,
        quiet,
    )
    if done["step"] >= schedule.total_steps:
        return export(folder, model, tokenizer, training_record(identity, done))
    return folder


def snapshot(run: str | os.PathLike[str], *, name: str = "snapshot") -> Path:
    """Export the newest checkpoint of a run, finished or not, as `run`/`name`. Raises InputError if there is none."""
    from transformers import PreTrainedTokenizerFast

    folder = Path(run)
    newest = saved_checkpoints(folder / "checkpoints")[-1:]
    if not newest:
        raise InputError(f"{folder} holds no checkpoint yet; train first")
    identity = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    recipe = Recipe(**identity["recipe"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    model = build_model(recipe, tokenizer)
    state = load_checkpoint(newest[0], model, _optimizers(model, recipe))
    return export(folder, model, tokenizer, training_record(identity, state), name=name)


def training_record(identity: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """What was trained on what for how long: run identity plus steps, tokens and minutes."""
    recipe = Recipe(**identity["recipe"])
    return {
        **identity,
        "steps": state["step"],
        "tokens": state["step"] * recipe.step_tokens,
        "minutes": round(state["minutes"], 1),
    }


def read_texts(texts: Mapping[str, str | os.PathLike[str]]) -> dict[str, list[str]]:
    """language -> non-empty lines. Raises InputError for a missing, undecodable or nearly empty file."""
    if not texts:
        raise InputError("no texts given; name at least one, as language -> file")
    lines = {}
    for language, path in texts.items():
        if not Path(path).is_file():
            raise InputError(f"no file at {path} (text for {language!r})")
        try:
            content = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as problem:
            raise InputError(f"{path} (text for {language!r}) is not UTF-8: {problem}") from problem
        lines[language] = [line.strip() for line in content.split("\n") if line.strip()]
        if len(lines[language]) < 20:
            raise InputError(
                f"{path} has {len(lines[language])} lines; at least 20 are needed to train and hold out some"
            )
    return lines


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama with tied embeddings, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def export(
    run: str | os.PathLike[str],
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    training: dict[str, Any],
    *,
    name: str = "model",
) -> Path:
    """Write `run`/`name` as a Hugging Face folder; replaces an older one of that name.

    The file holds float16 weights; the configuration asks for float32, in which a plain CPU is faster and exact.
    """
    import copy

    target, part = Path(run) / name, Path(run) / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    half = copy.deepcopy(model).half()
    half.save_pretrained(part)
    tokenizer.save_pretrained(part)
    _tidy(part)
    write_json(part / "training.json", training)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target


def _tidy(folder: Path) -> None:
    """Leave out where the tokenizer was loaded from, name the class that all transformers versions know, open the files."""
    tokenizer, model = folder / "tokenizer_config.json", folder / "config.json"
    settings = json.loads(tokenizer.read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only", "backend")}
    write_json(tokenizer, {**kept, "tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(model, {**json.loads(model.read_text(encoding="utf-8")), "dtype": "float32"}, indent=2)
    for path in folder.iterdir():
        path.chmod(0o644)


def _claim(folder: Path, identity: dict[str, Any], resume: bool) -> None:
    """Make the folder this run's, or check that it already is. Raises InputError otherwise."""
    mark = folder / "run.json"
    if not mark.exists():
        write_json(mark, identity)
        return
    if not resume:
        raise InputError(f"{folder} holds a training run already; resume it, or choose another output folder")
    if json.loads(mark.read_text(encoding="utf-8")) != identity:
        raise InputError(
            f"{folder} holds a run with another seed, recipe or text; give the same ones, or another folder"
        )


def _tokenizer(folder: Path, lines: Mapping[str, list[str]], recipe: Recipe, seed: int) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    saved, part = folder / "tokenizer", folder / ".tokenizer.part"
    if not saved.exists():
        shutil.rmtree(part, ignore_errors=True)
        training_lines = {name: split_lines(t)[0] for name, t in lines.items()}
        train_tokenizer(training_lines, vocab_size=recipe.vocab_size, seed=seed).save_pretrained(part)
        part.rename(saved)
    return PreTrainedTokenizerFast.from_pretrained(saved)


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside blocks, one per worker; AdamW for embeddings and norms."""
    import torch

    if not hasattr(torch.optim, "Muon"):
        raise InputError(
            f"training needs torch.optim.Muon, but torch is {torch.__version__}; install torch 2.9 or newer"
        )
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[Optimizer] = [
        torch.optim.Muon(
            matrices[worker :: recipe.workers],
            lr=recipe.muon_lr,
            weight_decay=recipe.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )
        for worker in range(min(recipe.workers, len(matrices)))
    ]
    optimizers.append(torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _loop(
    model: LlamaForCausalLM,
    optimizers: list[Optimizer],
    schedule: Schedule,
    mixture: Mixture,
    state: dict[str, Any],
    recipe: Recipe,
    folder: Path,
    max_minutes: float | None,
    checkpoint_minutes: float,
    stop_after_steps: int | None,
    quiet: bool,
) -> dict[str, Any]:
    """Step until the schedule ends or `stop_after_steps`; returns the progress at the end, which is checkpointed."""
    step, block, row, before = state["step"], state["block"], state["row"], state["minutes"]
    first_step, shortened, began = step, state.get("shortened", False), time.monotonic()
    saved_at, (rows, weights) = began, mixture.block(block)

    def now() -> dict[str, Any]:
        minutes = before + (time.monotonic() - began) / 60
        return {
            "step": step,
            "block": block,
            "row": row,
            "minutes": minutes,
            "total_steps": schedule.total_steps,
            "shortened": shortened,
        }

    with (
        ThreadPoolExecutor(recipe.workers) as pool,
        progress_bar("training", schedule.total_steps - step, unit="steps", quiet=quiet) as advance,
    ):
        while step < schedule.total_steps and (stop_after_steps is None or step - first_step < stop_after_steps):
            shortened |= schedule.decay_if_late(step, now()["minutes"], max_minutes)
            while row + recipe.rows_per_step > len(rows):
                block, row = block + 1, 0
                rows, weights = mixture.block(block)
            batch = (rows[row : row + recipe.rows_per_step], weights[row : row + recipe.rows_per_step])
            loss = _step(model, optimizers, batch, mixture, schedule.factor(step), recipe, pool)
            step, row = step + 1, row + recipe.rows_per_step
            advance(1)
            if step % 20 == 0:
                _log(folder, {**now(), "loss": loss, "tokens": step * recipe.step_tokens})
            if time.monotonic() - saved_at > checkpoint_minutes * 60:
                save_checkpoint(folder / "checkpoints", model, optimizers, now())
                saved_at = time.monotonic()
    save_checkpoint(folder / "checkpoints", model, optimizers, now())
    return now()


def _step(
    model: LlamaForCausalLM,
    optimizers: list[Optimizer],
    batch: tuple[np.ndarray, np.ndarray],
    mixture: Mixture,
    factor: float,
    recipe: Recipe,
    pool: ThreadPoolExecutor,
) -> float:
    """One optimizer step on (ids, weights), each (rows_per_step, row_length); returns the weighted mean loss in nats.

    Each worker takes an equal part of the rows with one thread of its own. Threads that meet once a step, not at every
    operation, lose little where other programs share the cores; the parts are summed in order, so nothing is random.
    """
    import torch

    parameters = list(model.parameters())

    def part(rows: np.ndarray, weights: np.ndarray) -> tuple[tuple[torch.Tensor, ...], float]:
        torch.set_num_threads(1)
        ids, positions = torch.from_numpy(rows.copy()), torch.from_numpy(mixture.positions(rows))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16, cache_enabled=False):
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        loss = next_token_loss(logits, ids, positions, torch.from_numpy(weights.copy()))
        return torch.autograd.grad(loss, parameters), float(loss.detach())

    parts = list(pool.map(part, *(np.array_split(array, recipe.workers) for array in batch)))
    value = sum(loss for _, loss in parts) / len(parts)
    if not math.isfinite(value):
        raise InputError(
            "the loss is not a finite number any more; resume from a checkpoint with a lower learning rate"
        )
    for parameter, *grads in zip(parameters, *(grads for grads, _ in parts), strict=True):
        parameter.grad = sum(grads[1:], start=grads[0]) / len(grads)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
    list(pool.map(lambda optimizer: optimizer.step(), optimizers))
    return value


def next_token_loss(
    logits: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted mean cross-entropy in nats; a document's first token is never a target.

    logits (rows, length, vocab); ids, positions and weights (rows, length).
    """
    import torch

    targets = torch.full_like(ids, -100)  # the last column predicts nothing; slicing the logits instead would copy them
    targets[:, :-1] = ids[:, 1:].masked_fill(positions[:, 1:] == 0, -100)
    shifted = torch.zeros_like(weights)
    shifted[:, :-1] = weights[:, 1:].masked_fill(positions[:, 1:] == 0, 0.0)
    losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * shifted.flatten()).sum() / shifted.sum()


def _log(folder: Path, entry: dict[str, Any]) -> None:
    with (folder / "log.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")
