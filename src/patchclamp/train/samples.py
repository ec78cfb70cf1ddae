"""Samples: the documents of a corpus, the items of a task or a list of texts, numbered in one re-iterable stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.corpora import Corpus, corpus
from patchclamp.data.documents import Document
from patchclamp.data.tasks import Task


@dataclass(frozen=True, eq=False)
class Samples:
    """Documents in order, label after label; document k is sample k. task: where they came from a task, its items."""

    text: Corpus
    task: Task | None = None

    @classmethod
    def of(cls, given: Any, what: str = "pool") -> Samples:
        """From a corpus, a task (prompt, answer and tail make a sample), a list of texts or documents, or Samples.

        what: how to call it in an error. InputError for what is empty or something else.
        """
        if isinstance(given, Samples):
            return given
        if isinstance(given, Task):
            return cls(given.corpus(prompts_only=False), given)
        if isinstance(given, Corpus):
            if given.max_tokens is not None:
                raise InputError(f"the {what} is limited to {given.max_tokens} tokens; limit it with max_documents")
            return cls(given)
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise InputError(f"the {what} is a {type(given).__name__}; a corpus, a task or a list of texts is needed")
        if not len(given):
            raise InputError(f"the {what} is empty; at least one sample is needed")
        return cls(corpus({what: list(given)}))

    def __iter__(self) -> Iterator[Document]:
        for _, document in self.labelled():
            yield document

    def labelled(self) -> Iterator[tuple[str, Document]]:
        """(label, document) of every sample."""
        for label in self.text.labels:
            for document in self.text.documents(label):
                yield label, document

    def taken(self, numbers: Sequence[int]) -> list[tuple[str, Document]]:
        """(label, document) of some samples, in the order given; reads the stream once."""
        wanted = set(numbers)
        found = {number: entry for number, entry in enumerate(self.labelled()) if number in wanted}
        return [found[number] for number in numbers]

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data for results: that of the task or text."""
        return self.text.identity if self.task is None else self.task.identity
