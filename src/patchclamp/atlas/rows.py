"""How rows look in a terminal: as a table or, where that would be wider than the terminal, one value a line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Rows:
    """Rows of text under their columns. right: columns of numbers. Text is never taken for markup."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Collection[str] = ()
    title: str | None = None
    caption: str | None = None

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        table = self._table()
        unbounded = options.update(max_width=100_000)
        if console.measure(table, options=unbounded).maximum <= options.max_width:
            yield table
        else:
            yield from self._records()

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        drawn = Table(title=self.title, title_justify="left", header_style="bold", caption=self.caption)
        drawn.caption_justify = "left"
        for name in self.columns:
            drawn.add_column(Text(name), justify="right" if name in self.right else "left")
        for row in self.rows:
            drawn.add_row(*map(Text, row))
        return drawn

    def _records(self) -> Iterator[Any]:
        """Every row as a block of lines `column  value`, each cut to the width of the terminal."""
        from rich.table import Table
        from rich.text import Text

        if self.title:
            yield Text(self.title, style="italic")
        for row in self.rows:
            block = Table.grid(padding=(0, 2, 0, 0))
            block.add_column(style="bold", no_wrap=True, min_width=max(map(len, self.columns)))
            block.add_column(no_wrap=True, overflow="ellipsis")
            for name, value in zip(self.columns, row, strict=True):
                block.add_row(Text(name), Text(value))
            yield block
            yield Text("")
        if self.caption:
            yield Text(self.caption, style="italic")
