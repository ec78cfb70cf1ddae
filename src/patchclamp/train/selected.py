"""What a selection chose: the samples, their ranks and scores, as text to train on and as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import atomic_write, read_json, to_json, write_json
from patchclamp.data.corpora import Corpus, corpus
from patchclamp.data.documents import Document
from patchclamp.data.tasks import Task
from patchclamp.measure.tables import html_table, rich_table, text_table

FORMAT = "patchclamp.selection/1"
COLUMNS = ("rank", "score", "label", "sample", "text")
SHOWN = 60  # characters of a text in a table


@dataclass(frozen=True, eq=False)
class Selected:
    """A selection. indices: (k,) int64, numbers of the chosen samples in the pool, best first. scores: (n,) float64 of the
    whole pool. samples: (label, document) of the chosen. notes: what to beware of. details: how the scores came about.
    task: the pool, if it was a task.
    """

    how: str
    indices: NDArray[np.int64]
    scores: NDArray[np.float64]
    samples: list[tuple[str, Document]]
    notes: list[str] = field(default_factory=list)
    details: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    pool: Task | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def corpus(self) -> Corpus:
        """The chosen samples under their labels, best first within each."""
        found: dict[str, list[Document]] = {}
        for label, document in self.samples:
            found.setdefault(label, []).append(document)
        return corpus(found)

    def task(self) -> Task:
        """The chosen items of a task, best first. InputError if the pool was text."""
        if self.pool is None:
            raise InputError("these samples were chosen from text, not from a task; use corpus()")
        return Task.of([self.pool[number] for number in self.indices.tolist()], name=self.pool.name)

    @property
    def counts(self) -> dict[str, int]:
        """Chosen samples of each label."""
        found: dict[str, int] = {}
        for label, _ in self.samples:
            found[label] = found.get(label, 0) + 1
        return found

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per chosen sample, best first: rank (from 1), sample (its number), score, label, id, text."""
        return [
            {
                "rank": rank,
                "sample": int(number),
                "score": float(self.scores[number]),
                "label": label,
                "id": document.id,
                "text": document.text,
            }
            for rank, (number, (label, document)) in enumerate(zip(self.indices, self.samples, strict=True), start=1)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; the pool's scores in the pool's order."""
        rows = [
            {**row, "spans": {name: list(where) for name, where in document.spans.items()}}
            for row, (_, document) in zip(self.rows, self.samples, strict=True)
        ]
        return {
            "format": FORMAT,
            "how": self.how,
            "n": len(self),
            "pool": len(self.scores),
            "counts": self.counts,
            "notes": list(self.notes),
            "details": dict(self.details),
            "rows": rows,
            "scores": self.scores,
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.selection/1` JSON; for a name that ends in .jsonl the rows alone, one a line, ready to be read
        as text (column text)."""
        if str(path).endswith(".jsonl"):
            with atomic_write(path) as part:
                part.write_text("".join(to_json(row) + "\n" for row in self.rows), encoding="utf-8")
            return Path(path)
        return write_json(path, self.to_dict(), indent=None)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selected:
        """Read what `save` wrote; DamagedError for anything else."""
        data = read_json(path, format=FORMAT)
        try:
            samples = [
                (
                    row["label"],
                    Document(
                        row["text"],
                        {name: tuple((a, b) for a, b in where) for name, where in row["spans"].items()},
                        row["id"],
                    ),
                )
                for row in data["rows"]
            ]
            return cls(
                data["how"],
                np.array([row["sample"] for row in data["rows"]], dtype=np.int64),
                np.array(data["scores"], dtype=np.float64),
                samples,
                data["notes"],
                data["details"],
                data["provenance"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise DamagedError(f"{path} is not a complete {FORMAT} file: {problem!r}") from problem

    def _shown(self) -> list[dict[str, Any]]:
        return [{**row, "text": _short(row["text"])} for row in self.rows[:20]]

    @property
    def _title(self) -> str:
        return f"{len(self)} of {len(self.scores)} samples, selected by {self.how}"

    def __rich__(self) -> Any:
        return rich_table(self._title, self._shown(), COLUMNS)

    def __repr__(self) -> str:
        return text_table(self._title, self._shown(), COLUMNS)

    def _repr_html_(self) -> str:
        return html_table(self._title, self._shown(), COLUMNS)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else f"{flat[: SHOWN - 3]}..."
