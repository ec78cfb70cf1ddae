"""Floor 1, texts: labelled corpora, tasks, and batches of tokens that know which of their tokens count."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchclamp.data.batches import Batch, Budget, Selection, Tokens, encode
    from patchclamp.data.corpora import Corpus, corpus
    from patchclamp.data.demo import demo_text, open_corpus
    from patchclamp.data.documents import Document
    from patchclamp.data.paired import PairedItem, PairedTask
    from patchclamp.data.paired_sources import open_paired, paired
    from patchclamp.data.task_items import TaskItem
    from patchclamp.data.task_sources import generated, open_task, task
    from patchclamp.data.tasks import Task

_HOMES = {
    "Batch": "batches",
    "Budget": "batches",
    "Selection": "batches",
    "Tokens": "batches",
    "encode": "batches",
    "Corpus": "corpora",
    "corpus": "corpora",
    "Document": "documents",
    "PairedItem": "paired",
    "PairedTask": "paired",
    "open_paired": "paired_sources",
    "paired": "paired_sources",
    "demo_text": "demo",
    "open_corpus": "demo",
    "Task": "tasks",
    "TaskItem": "task_items",
    "generated": "task_sources",
    "open_task": "task_sources",
    "task": "task_sources",
}

__all__ = [
    "Batch",
    "Budget",
    "Corpus",
    "Document",
    "PairedItem",
    "PairedTask",
    "Selection",
    "Task",
    "TaskItem",
    "Tokens",
    "corpus",
    "demo_text",
    "encode",
    "generated",
    "open_corpus",
    "open_paired",
    "open_task",
    "paired",
    "task",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch is not needed to read text."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
