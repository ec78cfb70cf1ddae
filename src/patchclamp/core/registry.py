"""Tables of what can be plugged in: one decorated function or class in one file of a room is a whole entry.

A room makes its table with `finders = Registry("finder", room=__name__)`; a file adds to it with
`@finders.add("language")`. Third parties add theirs through the entry-point group `patchclamp.<kind>s`, where spaces of the
kind are underscores.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from patchclamp.core.errors import InputError

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered function or class, with what its docstring and signature say of it."""

    name: str
    kind: str
    target: T

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.target) or "").partition("\n")[0]

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Parameters of the function or constructor by name, `self` left out."""
        return dict(inspect.signature(self.target).parameters)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `patchclamp list --json`."""
        parameters = {
            name: None if p.default is inspect.Parameter.empty else p.default for name, p in self.parameters.items()
        }
        return {"kind": self.kind, "name": self.name, "summary": self.summary, "parameters": parameters}


class Registry(Generic[T]):
    """Entries of one kind by name; the room's files are imported on the first look-up, not before."""

    def __init__(self, kind: str, *, room: str) -> None:
        self.kind = kind
        self._room = room
        self._entries: dict[str, Entry[T]] = {}
        self._complete = False

    def add(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a function or class under `name`; a second use of a name is an error."""

        def register(target: T) -> T:
            known = self._entries.get(name)
            if known is not None and known.target.__module__ != target.__module__:
                raise InputError(
                    f"two {self.kind}s are called {name!r}: {known.target.__module__} and {target.__module__}"
                )
            self._entries[name] = Entry(name, self.kind, target)
            return target

        return register

    def __getitem__(self, name: str) -> T:
        self._discover()
        if name not in self._entries:
            raise InputError(f"no {self.kind} is called {name!r}; there are: {', '.join(sorted(self._entries))}")
        return self._entries[name].target

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def __iter__(self) -> Iterator[Entry[T]]:
        self._discover()
        return iter([self._entries[name] for name in sorted(self._entries)])

    def _discover(self) -> None:
        if self._complete:
            return
        self._complete = True
        package = importlib.import_module(self._room)
        for module in pkgutil.walk_packages(package.__path__, prefix=f"{self._room}."):  # files of its folders too
            importlib.import_module(module.name)
        for point in entry_points(group=f"patchclamp.{self.kind}s".replace(" ", "_")):
            self.add(point.name)(point.load())
