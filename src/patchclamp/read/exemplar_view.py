"""Exemplars to look at: every token coloured by the unit's value, in a terminal, as self-contained HTML, in a notebook.

Text from documents is shown as it is but for what could act on the screen: HTML is escaped, control characters and overrides of
the writing direction become visible signs.
"""

from __future__ import annotations

import base64
import html as markup
import struct
import unicodedata
import zlib
from collections.abc import Iterator, Sequence, ValuesView
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.read.exemplar import Exemplar, marked

WARM, COLD = (217, 95, 2), (31, 120, 180)  # above and below 0
FORMS = ("terminal", "html", "text")
_KINDS = {"top": "highest", "sample": "over the whole range", "held_out": "kept out for scoring"}
_STYLE = (
    "<style>.pc-exemplars p{margin:.25em 0;line-height:1.7;unicode-bidi:plaintext;white-space:pre-wrap}"
    ".pc-exemplars span{border-radius:2px}.pc-exemplars b{font-weight:600}"
    ".pc-exemplars small{color:#666;margin-inline-end:.6em}.pc-exemplars img{margin:2px;image-rendering:pixelated}</style>"
)


class Shown(Protocol):
    """What is looked at of one unit's exemplars."""

    @property
    def unit(self) -> str: ...
    @property
    def bar(self) -> float: ...
    @property
    def top(self) -> Sequence[Exemplar]: ...
    @property
    def sample(self) -> Sequence[Exemplar]: ...
    @property
    def notes(self) -> Sequence[str]: ...


class Store(Protocol):
    """What is looked at of a store of them."""

    medium: str

    def rows(self) -> list[dict[str, Any]]: ...
    def values(self) -> ValuesView[Any]: ...
    def __getitem__(self, unit: str, /) -> Any: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...


def render(shown: Shown, form: str = "terminal", *, kinds: Sequence[str] = ("top", "sample")) -> Any:
    """Exemplars in one of three forms: "terminal" (a rich renderable), "html" (text of a self-contained fragment), "text".

    kinds: top, sample, held_out.
    """
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise InputError(f"no exemplars of the kind {unknown[0]!r}; there are {', '.join(_KINDS)}")
    makers = {"terminal": terminal, "html": html, "text": plain}
    if form not in makers:
        raise InputError(f"form={form!r}; exemplars are rendered as {', '.join(makers)}")
    return makers[form](shown, kinds)


def terminal(shown: Shown, kinds: Sequence[str] = ("top", "sample")) -> Any:
    """A rich renderable: a line per passage, tokens on a coloured ground."""
    from rich.console import Group
    from rich.text import Text

    scale, lines = _scale(shown), [Text(_heading(shown), style="bold")]
    for kind in kinds:
        if passages := getattr(shown, kind):
            lines.append(Text(_KINDS[kind], style="dim"))
        for one in passages:
            line = Text(f"{one.value:9.3g}  {one.label}#{one.document}  ", style="dim")
            line.no_wrap = False
            for part, value, fires in zip(one.parts, one.values.tolist(), one.mask(shown.bar).tolist(), strict=True):
                line.append(visible(part), style=_rich_style(value / scale, fires))
            lines.append(line)
    return Group(*lines)


def html(shown: Shown, kinds: Sequence[str] = ("top", "sample")) -> str:
    """HTML with nothing outside it: values as tooltips, colour by value, bold above the bar, any writing direction."""
    scale = _scale(shown)
    body = [f"<div class='pc-exemplars'>{_STYLE}<h4>{markup.escape(_heading(shown))}</h4>"]
    body += [f"<p><small>{markup.escape(note)}</small></p>" for note in shown.notes]
    for kind in kinds:
        passages = getattr(shown, kind)
        if not passages:
            continue
        body.append(f"<div><small>{_KINDS[kind]}</small></div>")
        pictures = [one for one in passages if one.picture is not None]
        body += [picture_html(one, shown.bar) for one in pictures]
        body += [_passage_html(one, shown.bar, scale) for one in passages if one.picture is None]
    return "".join([*body, "</div>"])


def plain(shown: Shown, kinds: Sequence[str] = ("top", "sample")) -> str:
    """Plain text, what fires in double brackets."""
    lines = [_heading(shown)]
    for kind in kinds:
        for one in getattr(shown, kind):
            lines.append(f"{one.value:9.3g}  {one.label}#{one.document}  {visible(marked(one, shown.bar))}")
    return "\n".join(lines)


def terminal_store(store: Store, *, most: int = 3) -> Any:
    """A rich renderable of a store: all passages of a few units, one row per unit of many."""
    if len(store) > most or store.medium != "text":
        return rows_table(repr(store), _rows(store))
    from rich.console import Group

    return Group(*(terminal(shown) for shown in store.values()))


def store_html(store: Store, *, most: int = 20) -> str:
    """HTML of the first units of a store."""
    shown = [html(store[unit]) for _, unit in zip(range(most), store, strict=False)]
    more = f"<p>{len(store) - most} more units</p>" if len(store) > most else ""
    return "".join(shown) + more


def rows_table(title: str, rows: list[dict[str, Any]]) -> Any:
    """A rich table of rows that have the same keys."""
    from rich.table import Table
    from rich.text import Text

    found = Table(title=Text(title), title_justify="left")
    for name in rows[0] if rows else ():
        found.add_column(name)
    for row in rows:
        found.add_row(*(Text(visible(str(value))) for value in row.values()))
    return found


def rows_html(title: str, rows: list[dict[str, Any]]) -> str:
    """An HTML table of rows that have the same keys, texts escaped."""
    head = "".join(f"<th>{markup.escape(name)}</th>" for name in (rows[0] if rows else ()))
    cells = ["".join(f"<td dir='auto'>{markup.escape(visible(str(v)))}</td>" for v in row.values()) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return (
        f"<table><caption>{markup.escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def visible(text: str) -> str:
    """The text with characters that would act on the screen shown by signs: line breaks, controls, direction overrides."""
    return "".join(_sign(character) for character in text)


def picture_html(one: Exemplar, bar: float) -> str:
    """An image exemplar as an inline PNG, patches that don't fire darkened."""
    title = markup.escape(f"{one.label} #{one.document}: {one.value:.3g}", quote=True)
    return f"<img title='{title}' alt='{title}' src='data:image/png;base64,{base64.b64encode(png(one, bar)).decode()}'>"


def png(one: Exemplar, bar: float, *, smallest: int = 96) -> bytes:
    """PNG of an image exemplar, patches that don't fire darkened, enlarged by a whole number to `smallest` pixels."""
    if one.picture is None or one.grid is None:
        raise InputError("this exemplar is text; it has no picture")
    height, width = one.picture.shape[:2]
    mask = one.mask(bar).reshape(one.grid)
    rows, columns = (np.arange(n) * g // n for n, g in zip((height, width), one.grid, strict=True))
    light = np.where(mask[rows][:, columns], 1.0, 0.35)[..., None]
    times = max(1, smallest // min(height, width))
    pixels = (one.picture * light).round().astype(np.uint8).repeat(times, 0).repeat(times, 1)
    return _png(pixels)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """The PNG file of (height, width, 3) uint8."""
    height, width = pixels.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), dtype=np.uint8), pixels.reshape(height, -1)], axis=1)  # filter 0

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(rows.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _passage_html(one: Exemplar, bar: float, scale: float) -> str:
    spans = []
    for part, value, fires in zip(one.parts, one.values.tolist(), one.mask(bar).tolist(), strict=True):
        if not part:
            continue  # bytes of a character that a later token completes
        red, green, blue = WARM if value >= 0 else COLD
        ground = f"background:rgba({red},{green},{blue},{min(1.0, abs(value) / scale) * 0.85:.2f})"
        text = markup.escape(visible(part))
        inner = f"<b>{text}</b>" if fires else text
        spans.append(f"<span style='{ground}' title='{value:.4g}'>{inner}</span>")
    place = markup.escape(f"{one.label} #{one.document}")
    return f"<p dir='auto'><small dir='ltr'>{one.value:.3g} {place}</small>{''.join(spans)}</p>"


def _rich_style(strength: float, fires: bool) -> str:
    """Style of a token on a ground between nothing and full colour; readable on dark and light terminals."""
    share = min(1.0, abs(strength))
    if share < 0.05:
        return "bold" if fires else ""
    colour = WARM if strength > 0 else COLD
    red, green, blue = (round(255 - (255 - channel) * share) for channel in colour)
    return f"{'bold ' if fires else ''}black on rgb({red},{green},{blue})"


def _scale(shown: Shown) -> float:
    """The value of full colour: the largest magnitude among the top passages."""
    values = [float(np.abs(one.values).max()) for one in (*shown.top, *shown.sample)]
    finite = [value for value in values if np.isfinite(value)]
    return max(finite, default=0.0) or 1.0


def _heading(shown: Shown) -> str:
    return f"{shown.unit}: fires above {shown.bar:.3g}"


def _rows(store: Store) -> list[dict[str, Any]]:
    return [
        {
            "unit": row["unit"], "bar": f"{row['bar']:.3g}", "top": "" if row["top"] is None else f"{row['top']:.3g}",
            "passage": visible(row["passage"]),
        }
        for row in store.rows()
    ]  # fmt: skip


def _sign(character: str) -> str:
    if character == "\n":
        return "↵"
    if character == "\t":
        return "→"
    kind = unicodedata.category(character)
    if kind == "Cc":
        return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "�"
    if character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029" or kind == "Cs":
        return "�"
    return character
