"""Let a module be called like its main function, so that `patchclamp.record` is both the room and the verb.

Python sets the attribute `patchclamp.record` to the module as soon as anything imports it; without this a user's
`pc.record(model, text)` would work or not depending on what was imported before.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(name: str) -> None:
    """Make the module called `name` callable: a call goes to its attribute of the same last name."""
    sys.modules[name].__class__ = _CallableRoom
