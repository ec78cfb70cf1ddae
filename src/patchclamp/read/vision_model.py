"""Any `nn.Module` that looks at pictures, with the channels of chosen layers as units: maps, answers, ablation.

model = VisionModel(net, pictures, layers=("features.3", "features.6"))
model.maps(pixels)                            # one (pictures, channels, height, width) tensor per layer
with model.ablated(units):                    # these channels are 0 wherever they are computed
    accuracy(model, pictures)

A layer is named as in `net.named_modules()`. Its output is a map (convolution), one vector per patch (transformer; leading
class tokens are left out of the map) or one vector (a linear layer).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchclamp.core.errors import InputError, ModelError
from patchclamp.data.pictures import Pictures
from patchclamp.models.hooks import forward_replaced, watch_calls
from patchclamp.models.units import Layout, UnitSet

SITE = "channel"


class VisionModel:
    """A network, its layers, and the channels of these layers as units `channel.LAYER.INDEX` (LAYER counts the layers given).

    net: takes (pictures, channels, height, width), returns class scores (pictures, classes), or an object with `.logits`.
    layers: names of modules; by default every `nn.Conv2d`. preprocess: applied to pixels in [0, 1] first, such as a
    normalisation. grid: (height, width) of a transformer's patches where their number is not a square. A module that runs
    several times in a pass is read at its last run; ablation works at every run.
    InputError for layers that the network lacks, and for outputs that are no maps.
    """

    def __init__(
        self,
        net: nn.Module,
        example: Pictures | Tensor,
        *,
        layers: Sequence[str] | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        grid: tuple[int, int] | None = None,
        name: str = "network",
    ) -> None:
        self.net, self.preprocess, self.grid, self.name = net, preprocess, grid, name
        self.layers = _layers(net, layers)
        first = next(iter([*net.parameters(), *net.buffers()]), torch.zeros(0))
        self.device, self.dtype = first.device, first.dtype if first.is_floating_point() else torch.float32
        pixels = example.batch([0]) if isinstance(example, Pictures) else example[:1]
        self.map_sizes: list[tuple[int, int]] = []
        widths = []
        for made in self.maps(pixels):
            widths.append(int(made.shape[1]))
            self.map_sizes.append((int(made.shape[2]), int(made.shape[3])))
        self.layout = Layout(SITE, tuple(widths))
        self.fingerprint = _fingerprint(net, self.layers)
        self.identity: dict[str, Any] = {
            "name": name,
            "type": type(net).__name__,
            "fingerprint": self.fingerprint,
            "source": None,
            "dtype": str(self.dtype).removeprefix("torch."),
            "layers": list(self.layers),
            "sites": {SITE: {"widths": widths, "experts": [0] * len(widths)}},
        }

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Activation maps of every layer, each (pictures, channels, height, width) float32.

        ModelError for activations that are NaN or infinite.
        """
        modules = {name: self.net.get_submodule(name) for name in self.layers}
        seen = watch_calls(lambda: self._run(pixels), modules)
        return [self._map(name, seen[name][1], len(pixels)) for name in self.layers]

    def logits(self, pixels: Tensor) -> Tensor:
        """Class scores, (pictures, classes) float32."""
        out = self._run(pixels)
        out = getattr(out, "logits", out)
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(pixels):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(f"the network returns {got}; class scores of shape (pictures, classes) are needed")
        return out.float()

    def units(self, positions: Sequence[int] | np.ndarray[Any, Any], scores: Any = None) -> UnitSet:
        """The units at flat positions (layers one after another)."""
        return UnitSet.at(self.identity, SITE, np.asarray(positions, dtype=np.int64), scores)

    @contextlib.contextmanager
    def ablated(self, units: UnitSet) -> Iterator[None]:
        """Set the units to 0 at every position inside the context; nests, and is undone on any exception.

        In a transformer all tokens are meant, class tokens too. MismatchError for units of another network.
        """
        units.check_model(self.identity)
        where = units.positions.get(SITE, np.zeros(0, dtype=np.int64))
        with contextlib.ExitStack() as stack:
            for layer, name in enumerate(self.layers):
                span = self.layout.slice(layer)
                mine = where[(where >= span.start) & (where < span.stop)] - span.start
                if len(mine):
                    module = self.net.get_submodule(name)
                    stack.enter_context(forward_replaced(module, _zeroed(module.forward, torch.from_numpy(mine))))
            yield

    def removed(self, units: UnitSet) -> VisionModel:
        """A copy of the network whose weights make the units 0 for good; for layers that are convolutions, linear, batch norm."""
        units.check_model(self.identity)
        net = copy.deepcopy(self.net)
        for unit in units:
            module: Any = net.get_submodule(self.layers[unit.layer])
            if not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) or not isinstance(module.weight, Tensor):
                raise InputError(
                    f"{self.layers[unit.layer]} is a {type(module).__name__}: no weights of it set a channel to 0; take the "
                    "convolution, linear or batch-norm layer before it, or use `ablated`"
                )
            with torch.no_grad():
                module.weight[unit.index] = 0
                if module.bias is not None:
                    module.bias[unit.index] = 0
        height, width = self._example_size
        example = torch.zeros(1, self._example_channels, height, width)
        options: dict[str, Any] = {"layers": self.layers, "preprocess": self.preprocess, "grid": self.grid}
        return VisionModel(net, example, name=f"{self.name}, edited", **options)

    def _run(self, pixels: Tensor) -> Any:
        if pixels.ndim != 4 or not len(pixels):
            raise InputError(
                f"pixels of shape {tuple(pixels.shape)} given; (pictures, channels, height, width) are needed"
            )
        self._example_channels = int(pixels.shape[1])
        self._example_size = int(pixels.shape[2]), int(pixels.shape[3])
        ready = pixels.to(self.device) if self.preprocess is None else self.preprocess(pixels.to(self.device))
        with _evaluating(self.net), torch.no_grad():
            try:
                return self.net(ready.to(self.dtype))
            except (RuntimeError, ValueError) as problem:
                if isinstance(problem, torch.OutOfMemoryError):
                    raise
                message = str(problem).strip().splitlines()[0]
                raise InputError(
                    f"the network can't look at pixels of shape {tuple(pixels.shape)}: {message}"
                ) from problem

    def _map(self, name: str, output: Any, n: int) -> Tensor:
        if output is None:
            raise InputError(f"the layer {name} was not used, or did not return a tensor; choose another layer")
        if output.ndim not in (2, 3, 4) or len(output) != n:
            raise InputError(f"the layer {name} returns {tuple(output.shape)}; a map, patches or one vector is needed")
        if output.ndim == 2:
            made = output[:, :, None, None]
        elif output.ndim == 3:
            height, width = self._patches(name, output.shape[1])
            made = output[:, output.shape[1] - height * width :].transpose(1, 2).unflatten(2, (height, width))
        else:
            made = output
        made = made.float()
        if not bool(torch.isfinite(made).all()):
            raise ModelError(
                f"the layer {name} returns NaN or infinite activations; the network or a picture is damaged"
            )
        return made

    def _patches(self, name: str, tokens: int) -> tuple[int, int]:
        """Height and width of a transformer's patch grid; what is left over are leading class tokens."""
        if self.grid is not None:
            if self.grid[0] * self.grid[1] > tokens:
                raise InputError(f"grid={self.grid} given, but the layer {name} has {tokens} tokens")
            return self.grid
        for leading in range(6):  # a class token, and up to four register tokens or a distillation token
            side = math.isqrt(max(tokens - leading, 0))
            if side and side * side == tokens - leading:
                return side, side
        raise InputError(f"the {tokens} tokens of layer {name} are no square of patches; give grid=(height, width)")

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} ({width})" for name, width in zip(self.layers, self.layout.widths, strict=True))
        return f"VisionModel({self.name}, {type(self.net).__name__}: {shown})"


def predictions(model: VisionModel, pictures: Pictures, *, batch: int = 256) -> Tensor:
    """The class of highest score of every picture, (n,) int64; the first of equal ones."""
    return torch.cat([model.logits(pixels).argmax(1).cpu() for _, pixels in pictures.batches(batch)])


def accuracy(model: VisionModel, pictures: Pictures, *, batch: int = 256) -> float:
    """Share of pictures whose class gets the highest score, in [0, 1]."""
    return float((predictions(model, pictures, batch=batch) == pictures.labels.cpu()).double().mean())


def _layers(net: nn.Module, layers: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(layers, str):
        layers = (layers,)
    known = dict(net.named_modules())
    if layers is None:
        found = tuple(name for name, module in known.items() if isinstance(module, nn.Conv2d))
        if not found:
            raise InputError("the network has no nn.Conv2d; name the layers to read with layers=")
        return found
    chosen = tuple(layers)
    if not chosen:
        raise InputError("no layers given; name at least one, or leave layers= out for all convolutions")
    if len(set(chosen)) < len(chosen):
        raise InputError(f"a layer is named twice: {', '.join(chosen)}")
    for name in chosen:
        if name not in known or not name:
            raise InputError(f"the network has no layer {name!r}; it has {', '.join(list(known)[1:20])}")
    return chosen


def _zeroed(forward: Callable[..., Any], indices: Tensor) -> Callable[..., Any]:
    def changed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        given = output if isinstance(output, Tensor) else output[0]
        new = given.clone()  # a residual path may read the same tensor
        new[(slice(None), indices.to(new.device)) if new.ndim == 4 else (..., indices.to(new.device))] = 0
        return new if isinstance(output, Tensor) else type(output)((new, *output[1:]))

    return changed


@contextlib.contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; every module gets its own mode back."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _fingerprint(net: nn.Module, layers: Sequence[str]) -> str:
    """SHA-256 over the kind of network, its layers and all weights rounded to bfloat16."""
    digest = hashlib.sha256(repr((type(net).__name__, tuple(layers))).encode())
    for name, value in net.state_dict().items():
        digest.update(repr((name, tuple(value.shape))).encode())
        kept = value.detach().to(torch.bfloat16).float() if value.is_floating_point() else value.detach()
        digest.update(kept.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
