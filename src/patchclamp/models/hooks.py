"""Watching and changing what flows through a model: `observe`, `change`, `run`, `prompt_scope`.

The only file that registers torch hooks. Watching never changes a bit of the output; changes are undone on any
exception, they nest (what is entered later is applied later), and observers see what flows on after all changes.
All of it works under `generate()`; a compiled model runs uncompiled while something is watched or changed.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from patchclamp.core.errors import InputError, ModelError
from patchclamp.models.anatomy import SitePath
from patchclamp.models.experts import watch_experts

if TYPE_CHECKING:
    from patchclamp.models.features import Dictionary

Tap = tuple[str, int]
SCOPES = ("prompt", "generated", "all")


@dataclass(eq=False)
class Step:
    """One forward pass over columns `start .. start + seq - 1` of a batch.

    start > 0 where earlier columns live in a KV cache. attention_mask: (batch, seq) of these columns, or None.
    prompt_length: columns from here on count as generated, an int or a (batch,) tensor; None: nothing is generated.
    """

    batch: int
    seq: int
    start: int
    attention_mask: Tensor | None
    prompt_length: int | Tensor | None
    device: torch.device
    _scopes: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    def scope(self, scope: str, device: torch.device | None = None) -> Tensor:
        """(batch * seq,) bool: which positions belong to "prompt", "generated" or "all".

        A token is generated if it was fed back after the prompt; the last prompt position, which emits the first
        new token, belongs to the prompt. The same with and without a KV cache.
        """
        key = (scope, device or self.device)
        if key not in self._scopes:
            self._scopes[key] = self._scope(scope, key[1])
        return self._scopes[key]

    def _scope(self, scope: str, device: torch.device) -> Tensor:
        if scope not in SCOPES:
            raise InputError(f"scope {scope!r} given; scopes are {', '.join(SCOPES)}")
        if scope == "all":
            return torch.ones(self.batch * self.seq, dtype=torch.bool, device=device)
        columns = torch.arange(self.start, self.start + self.seq, device=device)
        if self.prompt_length is None:
            generated = torch.zeros(self.batch, self.seq, dtype=torch.bool, device=device)
        elif isinstance(self.prompt_length, int):
            generated = (columns >= self.prompt_length).expand(self.batch, self.seq)
        else:
            generated = columns[None, :] >= self.prompt_length.to(device)[:, None]
        return (generated if scope == "generated" else ~generated).reshape(-1)


@dataclass(slots=True, eq=False)
class Seen:
    """Values of one tap at one moment.

    values: (n_rows, width). rows: flat positions b * seq + s of the rows, None = all positions in order.
    offset: first unit of this slab within the layer (expert e starts at e * width). The taps ("final", last layer) and
    ("logits", last layer) show what enters the LM head and what the model returns; of logits only the rows that the model
    was asked for. For the tap ("head", layer) an
    observer gets the Euclidean norm of each head's block (n_rows, n_heads); a change gets (n_rows, n_heads, head_dim).
    """

    site: str
    layer: int
    values: Tensor
    rows: Tensor | None
    offset: int
    step: Step


See = Callable[[Seen], None]
Change = Callable[[Seen], Tensor]


class _Stop(BaseException):
    """Ends a forward pass early; not an Exception, so that no handler in a model swallows it."""


@contextlib.contextmanager
def observe(model: Any, taps: Iterable[Tap], see: See) -> Iterator[None]:
    """Call `see` with the values of every tap in every forward pass inside the context.

    taps: (site, layer) pairs. `see` must not write into the values. Raises InputError for a tap that the model lacks.
    """
    wanted = [(str(site), int(layer)) for site, layer in taps]
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(_active(model))
        for tap in wanted:
            stack.enter_context(_joined(state, model, tap, see, changing=False))
        yield


@contextlib.contextmanager
def change(model: Any, changes: Mapping[Tap, Change]) -> Iterator[None]:
    """Replace the values of every tap by what its function returns (same shape), inside the context.

    Contexts nest: the function entered later gets what the earlier one returned. Raises InputError for a tap that
    the model lacks, and in the forward pass for a function that returns another shape.
    """
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(_active(model))
        for (site, layer), function in changes.items():
            stack.enter_context(_joined(state, model, (str(site), int(layer)), function, changing=True))
        yield


def run(model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, *, stop_after: Tap | None = None) -> None:
    """Run the trunk (no LM head) for the sake of active observers.

    input_ids, attention_mask: (batch, seq). stop_after: end as soon as this tap has been seen; nothing after it is
    computed.
    """
    inputs = model.inputs(input_ids, attention_mask)
    with torch.inference_mode():
        if stop_after is None:
            model.trunk_module(**inputs)
            return
        with _active(model) as state, _stopping(state, model, stop_after), contextlib.suppress(_Stop):
            model.trunk_module(**inputs)


@contextlib.contextmanager
def prompt_scope(model: Any, prompt_length: int | Tensor) -> Iterator[None]:
    """Score prompt and response in one pass: tokens from `prompt_length` on count as generated.

    prompt_length: number of prompt tokens (padding not counted), an int or one per row (batch,).
    """
    state = _state_of(model.hf)
    before = state.prompt_tokens
    state.prompt_tokens = prompt_length
    try:
        yield
    finally:
        state.prompt_tokens = before


@contextlib.contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Lift all active changes inside the context; observers see the model as it is without them."""
    state = _state_of(model.hf)
    before, state.lifted = state.lifted, True
    try:
        yield
    finally:
        state.lifted = before


def in_use(model: Any) -> bool:
    """Whether something of ours is observing or changing the model now; hooks of other libraries don't count."""
    return _state_of(model.hf).depth > 0


def changed_layers(model: Any) -> list[int]:
    """The layers at which a change is active now."""
    return sorted({point.layer for point in _state_of(model.hf).points.values() if point.changes})


# --- what is active on one model ---------------------------------------------------------------------------------


def _nothing() -> None:
    """What a point without a hook undoes."""


class _Point:
    """One place in a model where something is watched or changed, with its torch hook."""

    def __init__(self, state: _State, entry: SitePath, layer: int) -> None:
        self.state, self.entry, self.layer = state, entry, layer
        self.changes: list[tuple[str, Change]] = []
        self.observers: list[tuple[str, See]] = []
        self.stops = 0
        self.undo: Callable[[], None] = _nothing

    @property
    def time_first(self) -> bool:
        """Whether tensors here are (seq, batch, width); what a trunk returns never is."""
        return bool(self.state.anatomy.time_first) and self.entry.where != "final"

    @property
    def idle(self) -> bool:
        return not (self.changes or self.observers or self.stops)

    def pass_through(self, values: Tensor, rows: Tensor | None = None, offset: int = 0) -> Tensor:
        """Apply the changes to `values` (n_rows, width), show the result to the observers, and return it."""
        step, layer = self.state.step, self.layer
        for site, function in () if self.state.lifted else self.changes:
            values = _changed(values, Seen(site, layer, values, rows, offset, step), function, self)
        for site, see in self.observers:
            if site == "head":
                count = self.state.anatomy.heads[layer]
                shown = torch.linalg.vector_norm(values.unflatten(-1, (count, -1)), dim=-1)
            else:
                shown = values
            see(Seen(site, layer, shown, rows, offset, step))
        return values


def _changed(values: Tensor, seen: Seen, function: Change, point: _Point) -> Tensor:
    if seen.site == "head":
        seen.values = values.unflatten(-1, (point.state.anatomy.heads[point.layer], -1))
    given = seen.values
    new = _checked(function(seen), seen.site, seen.layer, given)
    if new is given:
        return values
    return new.to(dtype=values.dtype, device=values.device).reshape(values.shape)


def _checked(new: Any, site: str, layer: int, given: Tensor) -> Tensor:
    """What a change returned, if it has the shape of what it was given."""
    if not isinstance(new, Tensor) or new.shape != given.shape:
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise InputError(f"the change of {site}.{layer} returned {got}; it must return {tuple(given.shape)}")
    return new


class _State:
    """Everything that is active on one `PreTrainedModel`."""

    def __init__(self) -> None:
        self.anatomy: Any = None
        self.points: dict[SitePath, _Point] = {}
        self.step: Any = None
        self.depth = 0
        self.following = contextlib.ExitStack()
        self.generating: int | None = None
        self.next_column = 0
        self.prompt_tokens: int | Tensor | None = None
        self.lifted = False


_STATES: WeakKeyDictionary[nn.Module, _State] = WeakKeyDictionary()


def _state_of(hf: nn.Module) -> _State:
    return _STATES.setdefault(hf, _State())


@contextlib.contextmanager
def _active(model: Any) -> Iterator[_State]:
    """The first context on a model starts following its forward passes; the last one stops, in whatever order they end."""
    state = _state_of(model.hf)
    state.anatomy = model.anatomy
    if not state.depth:
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, state, "step", None)
            handle = model.trunk_module.register_forward_pre_hook(_step_hook(state), with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
            stack.enter_context(_generate_wrapped(model.hf, state))
            stack.enter_context(_uncompiled())
            state.following = stack.pop_all()
    state.depth += 1
    try:
        yield state
    finally:
        state.depth -= 1
        if not state.depth:
            state.following.close()


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled models run as they were written: hooks come and go, and compiled code would not notice."""
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    try:
        yield
    finally:
        if "torch._dynamo" in sys.modules:  # compiled inside the context, hooks and all: forget it
            torch._dynamo.reset()


@contextlib.contextmanager
def _joined(state: _State, model: Any, tap: Tap, function: Any, *, changing: bool) -> Iterator[None]:
    """Enter a function at every place of a tap; for a feature at the place that its dictionary decomposes."""
    dictionary = model.anatomy.feature(*tap)
    if dictionary is None:
        entry: tuple[str, Any] = (tap[0], function)
    elif changing:
        entry = (dictionary.site, _feature_change(dictionary, tap[0], function))
    else:
        entry = (dictionary.site, _feature_see(dictionary, tap[0], function))
    joined = []
    try:
        for place in model.anatomy.site(*tap).places:
            point = _point(state, model, place, tap[1])
            members: list[Any] = point.changes if changing else point.observers
            members.append(entry)
            joined.append((point, members))
        yield
    finally:
        for point, members in joined:
            del members[max(number for number, member in enumerate(members) if member is entry)]
            _release(state, point)


def _feature_see(dictionary: Dictionary, site: str, see: See) -> See:
    """An observer of the vector that shows `see` its features."""

    def shown(one: Seen) -> None:
        here = dictionary.on(one.values.device)
        see(Seen(site, one.layer, here.encode(one.values.to(here.dtype)), one.rows, one.offset, one.step))

    return shown


def _feature_change(dictionary: Dictionary, site: str, function: Change) -> Change:
    """A change of the vector that moves it as `function` changes its features; what they don't explain is kept."""

    def moved(one: Seen) -> Tensor:
        here = dictionary.on(one.values.device)
        old = here.encode(one.values.to(here.dtype))
        new = _checked(function(Seen(site, one.layer, old, one.rows, one.offset, one.step)), site, one.layer, old)
        return one.values if new is old else here.moved(one.values, old, new.to(dtype=old.dtype, device=old.device))

    return moved


@contextlib.contextmanager
def _stopping(state: _State, model: Any, tap: Tap) -> Iterator[None]:
    entry = model.anatomy.site(*tap)
    if len(entry.places) > 1 or entry.experts:  # seen in several calls: stop where the block ends
        if "resid" not in model.anatomy.sites:
            yield
            return
        entry = model.anatomy.site("resid", tap[1])
    point = _point(state, model, entry, tap[1])
    point.stops += 1
    try:
        yield
    finally:
        point.stops -= 1
        _release(state, point)


def _point(state: _State, model: Any, place: SitePath, layer: int) -> _Point:
    if place not in state.points:
        point = _Point(state, place, layer)
        point.undo = _registered(model.anatomy.module(place.path), point)
        state.points[place] = point
    return state.points[place]


def _release(state: _State, point: _Point) -> None:
    if point.idle and state.points.get(point.entry) is point:
        point.undo()
        del state.points[point.entry]


# --- torch hooks -------------------------------------------------------------------------------------------------


def _registered(module: nn.Module, point: _Point) -> Callable[[], None]:
    """Hook a module; returns what undoes it."""
    if point.entry.where == "input":
        return module.register_forward_pre_hook(_input_hook(point)).remove
    if point.entry.where in ("output", "final"):
        return module.register_forward_hook(_output_hook(point)).remove
    if point.entry.where == "logits":
        return module.register_forward_hook(_logits_hook(point), with_kwargs=True).remove
    each = point.entry.width // point.entry.experts

    def visit(values: Tensor, rows: Tensor | None, expert: int) -> Tensor:
        return point.pass_through(values, rows, point.entry.offset + expert * each)

    return watch_experts(module, point.entry, visit)


def watch_calls(call: Callable[[], Any], modules: Mapping[str, nn.Module]) -> dict[str, tuple[Any, Any]]:
    """Run `call` once; name -> (first argument, output) of each module's last call, (None, None) if it had none."""
    seen: dict[str, tuple[Any, Any]] = dict.fromkeys(modules, (None, None))

    def keeper(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                seen[name] = (args[0], output)

        return keep

    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(keeper(name)).remove)
        call()
    return seen


@contextlib.contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Call a module by another function inside the context; what accelerate put there comes back afterwards."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _input_hook(point: _Point) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        values = args[0]
        new = _visit(point, values)
        return None if new is values else (new, *args[1:])

    return hook


def _output_hook(point: _Point) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        values = output if isinstance(output, Tensor) else output[0]
        new = _visit(point, values)
        return None if new is values else _with_first(output, new)

    return hook


def _logits_hook(point: _Point) -> Callable[..., Any]:
    """Logits come last and not always of all positions: `logits_to_keep` says of which."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        logits = output.logits if hasattr(output, "logits") else output[0]
        rows = _kept_rows(kwargs.get("logits_to_keep"), logits, point.state.step)
        flat = logits.reshape(-1, logits.shape[-1])
        new = point.pass_through(flat, rows)
        if new is flat:
            return None
        new = new.reshape(logits.shape)
        if not hasattr(output, "logits"):
            return (new, *output[1:])
        changed = copy.copy(output)
        changed["logits"] = new
        return changed

    return hook


def _kept_rows(kept: int | Tensor | None, logits: Tensor, step: Step) -> Tensor | None:
    """Flat positions of logits (batch, columns, vocabulary) that a model was asked for; None for all positions."""
    if logits.dim() != 3 or logits.shape[1] == step.seq:
        return None
    if isinstance(kept, Tensor):
        columns = kept.to(logits.device).long() % step.seq
    else:
        columns = torch.arange(step.seq - logits.shape[1], step.seq, device=logits.device)
    return (torch.arange(step.batch, device=logits.device)[:, None] * step.seq + columns[None, :]).reshape(-1)


def _with_first(output: Any, new: Tensor) -> Any:
    """A module's output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return new
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        changed[next(iter(output))] = new
        return changed
    return type(output)((new, *output[1:]))


def _visit(point: _Point, values: Tensor) -> Tensor:
    """Pass a module's tensor through a point; returns the very same object unless a function changed it."""
    state, entry = point.state, point.entry
    if state.step is None:  # a part of the model called by itself, outside the trunk
        state.step = _step_of_part(values, point.state.anatomy.time_first)
    flat = _rows_of(point, values)
    new = point.pass_through(flat, None, entry.offset)
    if point.stops:
        raise _Stop
    return values if new is flat else _put_back(point, values, new)


def _rows_of(point: _Point, values: Tensor) -> Tensor:
    """(batch * seq, width) of a module's tensor, positions in order."""
    step, entry = point.state.step, point.entry
    batch, seq = step.batch, step.seq
    if point.time_first and values.dim() == 3:
        values = values.transpose(0, 1)
    if values.dim() >= 3 and values.shape[0] == batch and values.shape[1] > seq and point.state.anatomy.pads:
        values = values[:, :seq]
    if values.dim() >= 3 and values.shape[:2] == (batch, seq):
        flat = values.reshape(batch * seq, -1)
    else:
        flat = values.reshape(-1, values.shape[-1])
    flat = entry.cut(flat).flatten(1)
    if flat.shape != (batch * seq, entry.width):
        raise ModelError(
            f"{entry.path} handles a tensor of shape {tuple(values.shape)} in a forward pass over {batch} x {seq} positions; "
            f"{entry.width} units for each position were expected there"
        )
    return flat


def _put_back(point: _Point, values: Tensor, new: Tensor) -> Tensor:
    """`values` with the rows of `_rows_of` replaced."""
    step, entry = point.state.step, point.entry
    if point.time_first and values.dim() == 3:
        return new.view(step.batch, step.seq, -1).transpose(0, 1)
    whole = values.dim() < 3 or values.shape[0] != step.batch or values.shape[1] == step.seq
    if whole and entry.part is None:
        return new.reshape(values.shape)
    copy = values.clone()
    target = copy if whole else copy[:, : step.seq]
    part = entry.cut(target)
    part.copy_(new.reshape(part.shape))
    return copy


def _step_of_part(values: Tensor, time_first: bool) -> Step:
    shape = (values.shape[0], values.shape[1]) if values.dim() >= 3 else (1, values.shape[0])
    batch, seq = shape[::-1] if time_first else shape
    return Step(batch, seq, 0, None, None, values.device)


# --- which forward pass we are in --------------------------------------------------------------------------------


def _step_hook(state: _State) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state.step = _step(state, args, kwargs)

    return hook


def _step(state: _State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
    tokens = kwargs.get("input_ids")
    if tokens is None:
        tokens = args[0] if args and args[0] is not None else kwargs.get("inputs_embeds")
    if tokens is None:
        raise ModelError("the model was called without input_ids and inputs_embeds; positions can't be told")
    batch, seq = int(tokens.shape[0]), int(tokens.shape[1])
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < seq:
        mask = None
    start = _cached_length(state, kwargs)
    if mask is not None:
        start = max(start, mask.shape[1] - seq)
    state.next_column = start + seq
    prompt: int | Tensor | None = state.generating
    if state.prompt_tokens is not None:
        prompt = _prompt_column(state.prompt_tokens, mask)
    here = None if mask is None else mask[:, -seq:].bool()
    return Step(batch, seq, start, here, prompt, tokens.device)


def _cached_length(state: _State, kwargs: dict[str, Any]) -> int:
    """Columns that a cache holds already; a recurrent state doesn't say, so there the last step's end counts."""
    cache = next(
        (kwargs[key] for key in ("past_key_values", "cache_params", "state") if kwargs.get(key) is not None), None
    )
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        with contextlib.suppress(ValueError, IndexError, NotImplementedError):
            return int(cache.get_seq_length())
    return state.next_column if state.generating is not None else 0


def _prompt_column(length: int | Tensor, mask: Tensor | None) -> int | Tensor:
    """Column where the response starts: prompt length plus the row's left padding."""
    if mask is None:
        return length
    first = mask.long().argmax(dim=1)
    return first + (length.to(first.device) if isinstance(length, Tensor) else length)


@contextlib.contextmanager
def _generate_wrapped(hf: Any, state: _State) -> Iterator[None]:
    """Let `hf.generate` tell how long its prompt is, so that scopes mean the same with and without a KV cache."""
    own, plain = "generate" in vars(hf), hf.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        before, state.generating = state.generating, _prompt_columns(args, kwargs)
        state.next_column = 0
        try:
            return plain(*args, **kwargs)
        finally:
            state.generating = before

    hf.generate = generate
    try:
        yield
    finally:
        if own:
            hf.generate = plain
        else:
            del hf.generate


def _prompt_columns(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    for given in (*args[:1], kwargs.get("inputs"), kwargs.get("input_ids"), kwargs.get("inputs_embeds")):
        if isinstance(given, Tensor):
            return int(given.shape[1])
    return 1
