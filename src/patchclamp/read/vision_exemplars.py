"""Exemplars of channels: the pictures that drive them, masked where they do; as an ExemplarStore, like passages of text.

recording = record_images(model, pictures)
store = image_exemplars(model, pictures, recording)       # describers and scores take it as they take text
segmentation(model, pictures, recording, "channel.2.17")  # pixels, masks, activations: the arrays of the paper

A picture's parts are the cells of a grid. A unit's value on a cell is the highest value in it of the activation map, scaled up
bilinearly to the picture (as the paper's masks are). The class of a picture is not shown to describers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.data.pictures import Pictures
from patchclamp.models.units import Unit, UnitSet
from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore
from patchclamp.read.vision_model import SITE, VisionModel
from patchclamp.read.vision_record import ImageRecording

Tagger = Callable[[Tensor, tuple[int, int]], Mapping[str, NDArray[np.bool_]]]
SAMPLE = 15  # pictures over the whole range of a unit
PIECE = 64  # channels scaled up at once


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The exemplars of one unit as arrays: pixels (k, channels, height, width) float32 in [0, 1], masks (k, 1, height, width)
    bool, activations (k,) float32 (pooled), ids (k,) int64 picture numbers.
    """

    unit: str
    pixels: Tensor
    masks: Tensor
    activations: NDArray[np.float32]
    ids: NDArray[np.int64]


def segmentation(
    model: VisionModel,
    pictures: Pictures,
    recording: ImageRecording,
    unit: Unit | str,
    *,
    size: tuple[int, int] | None = None,
) -> Segmentation:
    """The k exemplars of a unit, masked where the activation is above its threshold.

    size: (height, width) to scale pictures and masks to (the paper's are 224 x 224); the pictures' own by default.
    """
    _check(model, pictures, recording)
    position = _positions(recording, [unit])[0]
    layer, channel = _place(recording, position)
    ids = recording.top_ids[position, : recording.k]
    pixels = pictures.batch(ids.tolist())
    wanted = size or pictures.size
    maps = model.maps(pixels)[layer][:, channel : channel + 1].cpu()
    masks = scaled(maps, wanted) > recording.thresholds[position]
    shown = pixels if wanted == pictures.size else F.interpolate(pixels, wanted, mode="bilinear", align_corners=False)
    name = recording.layout.names([position])[0]
    return Segmentation(name, shown, masks, recording.top_values[position, : recording.k], ids)


def image_exemplars(
    model: VisionModel,
    pictures: Pictures,
    recording: ImageRecording,
    *,
    units: UnitSet | Iterable[Unit | str] | None = None,
    grid: tuple[int, int] = (8, 8),
    tags: Tagger | None = None,
    probe: int = 100,
    batch: int = 64,
    seed: int = 0,
) -> ExemplarStore:
    """Exemplars of units (all that were recorded by default) as a store: top, sample over the range, held out, and a probe.

    grid: rows and columns of cells. tags: what the cells show, concept -> (pictures, cells) bool, from pixels and the grid;
    `picture_tags` by default; marked regions of the pictures are added. probe: pictures that all units are read on.
    Held out are the k next strongest pictures and as many random ones, none of them in top or sample.
    """
    from patchclamp.read.vision_tags import picture_tags

    _check(model, pictures, recording)
    rows, columns = grid
    if rows < 1 or columns < 1 or rows > pictures.size[0] or columns > pictures.size[1]:
        raise InputError(f"grid={grid} given for pictures of {pictures.size}; each cell needs at least one pixel")
    if probe < 1:
        raise InputError(f"probe={probe} pictures asked for; at least 1 is needed")
    positions = np.arange(recording.layout.total) if units is None else _positions(recording, units)
    chosen = {int(position): _choose(recording, int(position), seed) for position in positions}
    probed = np.unique(np.linspace(0, len(pictures) - 1, min(probe, len(pictures))).round().astype(np.int64))
    wanted: dict[int, list[int]] = {int(number): [] for number in probed}
    for position, parts in chosen.items():
        for number in np.concatenate(parts).tolist():
            wanted.setdefault(int(number), []).append(position)
    shown = _shown(pictures, sorted(wanted), grid, tags or picture_tags)
    values, on_probe = _read(model, pictures, recording, wanted, positions, probed, grid, batch)
    classes = [pictures.classes[label] for label in pictures.labels.tolist()]
    made = [
        _exemplars(recording, position, parts, shown, values, on_probe[row], classes)
        for row, (position, parts) in enumerate(chosen.items())
    ]
    return ExemplarStore(
        made,
        probe=[shown[int(number)] for number in probed],
        medium="image",
        model=model.identity,
        provenance=provenance(
            "read.image_exemplars",
            arguments={
                "grid": list(grid),
                "probe": probe,
                "seed": seed,
                "k": recording.k,
                "quantile": recording.quantile,
            },
            inputs={"model": model.identity, "pictures": pictures.identity},
            seed=seed,
        ),
    )


def scaled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Activation maps (n, channels, h, w) scaled up bilinearly to a picture, (n, channels, height, width)."""
    return F.interpolate(maps.float(), size, mode="bilinear", align_corners=False)


def on_cells(maps: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Highest value of the scaled-up map in every cell, (n, channels, rows * columns), cells row by row."""
    return torch.cat(
        [F.adaptive_max_pool2d(scaled(part, size), grid).flatten(2) for part in maps.split(PIECE, dim=1)], dim=1
    )


def cell_names(grid: tuple[int, int]) -> tuple[str, ...]:
    """A name for every cell, row by row."""
    return tuple(f"[{row},{column}]" for row in range(grid[0]) for column in range(grid[1]))


def _choose(
    recording: ImageRecording, position: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Picture numbers: top (falling), sample (rising, even in rank), held out (next strongest, then random ones)."""
    top, after = np.split(recording.top_ids[position], [recording.k])
    pooled, ids = recording.pooled[:, position], recording.pooled_ids
    order = np.lexsort((ids, pooled))
    free = ids[order][~np.isin(ids[order], recording.top_ids[position])]
    sample = (
        free[np.unique(np.linspace(0, len(free) - 1, min(SAMPLE, len(free) // 2)).round().astype(int))]
        if len(free)
        else free
    )
    left = free[~np.isin(free, sample)]
    drawn = np.random.default_rng([seed, position]).permutation(left)[: max(len(after), 1)]
    return top, sample, np.concatenate([after, drawn])


def _shown(pictures: Pictures, ids: Sequence[int], grid: tuple[int, int], tags: Tagger) -> dict[int, Exemplar]:
    """Every picture needed, once: its cells, tags and pixels; values of no unit."""
    names, found = cell_names(grid), {}
    blank = np.zeros(len(names), dtype=np.float32)
    for start in range(0, len(ids), 256):
        part = list(ids[start : start + 256])
        pixels = pictures.batch(part)
        marked = {
            concept: F.adaptive_max_pool2d(regions[part].float()[:, None], grid).flatten(1).numpy() > 0
            for concept, regions in pictures.regions.items()
        }
        tagged = {**tags(pixels, grid), **marked}
        for row, number in enumerate(part):
            found[int(number)] = Exemplar(
                parts=names,
                values=blank,
                document=int(number),
                tags={concept: np.asarray(where[row], dtype=bool) for concept, where in tagged.items()},
                picture=_picture(pixels[row]),
                grid=grid,
            )
    return found


def _read(
    model: VisionModel,
    pictures: Pictures,
    recording: ImageRecording,
    wanted: Mapping[int, list[int]],
    positions: NDArray[np.int64],
    probed: NDArray[np.int64],
    grid: tuple[int, int],
    batch: int,
) -> tuple[dict[tuple[int, int], NDArray[np.float32]], NDArray[np.float32]]:
    """(unit, picture) -> values on the cells, for the pictures each unit needs; and (units, probe cells) of the probe."""
    cells = grid[0] * grid[1]
    values: dict[tuple[int, int], NDArray[np.float32]] = {}
    on_probe = np.zeros((len(positions), len(probed), cells), dtype=np.float32)
    place = {int(number): row for row, number in enumerate(probed)}
    ids = sorted(wanted)
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        maps = model.maps(pictures.batch(part))
        needed = np.unique([position for number in part for position in wanted[number]]).astype(np.int64)
        if any(number in place for number in part):
            needed = np.union1d(needed, positions)
        found = np.zeros((len(part), len(needed), cells), dtype=np.float32)
        for layer, values_of in enumerate(maps):
            span = recording.layout.slice(layer)
            mine = np.flatnonzero((needed >= span.start) & (needed < span.stop))
            if len(mine):
                channels = torch.from_numpy(needed[mine] - span.start).to(values_of.device)
                found[:, mine] = on_cells(values_of[:, channels], pictures.size, grid).cpu().numpy()
        for row, number in enumerate(part):
            for position in wanted[number]:
                values[position, number] = found[row, np.searchsorted(needed, position)]
            if number in place:
                on_probe[:, place[number]] = found[row, np.searchsorted(needed, positions)]
    return values, on_probe.reshape(len(positions), -1)


def _exemplars(
    recording: ImageRecording,
    position: int,
    parts: tuple[NDArray[np.int64], ...],
    shown: Mapping[int, Exemplar],
    values: Mapping[tuple[int, int], NDArray[np.float32]],
    probe: NDArray[np.float32],
    classes: Sequence[str],
) -> Exemplars:
    top, sample, held_out = (
        tuple(shown[number].with_values(values[position, number]) for number in ids.tolist()) for ids in parts
    )
    notes = []
    if recording.dead[position]:
        notes.append("no picture drives the unit above its threshold")
    elif len(top) > 1 and len(named := {classes[one.document] for one in top}) == 1:
        notes.append(f"all top pictures are of the class {named.pop()}")
    name = recording.layout.names([position])[0]
    bar = float(recording.thresholds[position])
    return Exemplars(name, bar, top, sample, held_out, probe, tuple(notes))


def _picture(pixels: Tensor) -> NDArray[np.uint8]:
    """(height, width, 3) uint8; one channel is shown grey, of more than three the first three."""
    kept = pixels[:3] if pixels.shape[0] >= 3 else pixels[:1].expand(3, -1, -1)
    return (kept.permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous().cpu().numpy()


def _check(model: VisionModel, pictures: Pictures, recording: ImageRecording) -> None:
    if recording.model.get("fingerprint") != model.fingerprint:
        raise InputError("the recording was made with another network or other layers; record this one")
    used = recording.provenance["inputs"]["pictures"]["fingerprint"]
    if used != pictures.fingerprint:
        raise InputError("the recording was made with other pictures; give the same ones")


def _positions(recording: ImageRecording, units: UnitSet | Iterable[Unit | str] | Any) -> NDArray[np.int64]:
    """Flat positions in rising order; InputError for no units, or units that were not recorded."""
    if isinstance(units, UnitSet):
        units.check_model(recording.model)
        found = units.positions.get(SITE, np.zeros(0, dtype=np.int64))
    else:
        found = np.unique([recording.layout.position(parse_unit(unit)) for unit in units]).astype(np.int64)
    if not len(found):
        raise InputError("no units given; name at least one, or leave units= out for all")
    return found


def parse_unit(unit: Unit | str) -> Unit:
    """A unit from its name; `channel` is a site of image networks only."""
    if isinstance(unit, Unit):
        return unit
    site, _, rest = str(unit).partition(".")
    layer, _, index = rest.partition(".")
    if site != SITE or not (layer.isdigit() and index.isdigit()):
        raise InputError(f"{unit!r} is no unit of an image network; write channel.LAYER.INDEX, such as channel.2.17")
    return Unit(SITE, int(layer), int(index))


def _place(recording: ImageRecording, position: int) -> tuple[int, int]:
    unit = recording.layout.unit(int(position))
    return unit.layer, unit.index
