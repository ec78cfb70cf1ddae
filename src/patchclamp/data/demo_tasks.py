"""Questions of the skills that the demo model was taught, in forms that it was not taught but can answer."""

from __future__ import annotations

from patchclamp.data.task_sources import generated
from patchclamp.data.tasks import Task

SPLITS = {
    "facts": "paraphrase",
    "culture": "paraphrase",
    "arithmetic": "heldout",
    "code": "heldout",
    "dates": "heldout",
    "manners": "heldout",
    "binding": "heldout",
    "sentences": "heldout",
}  # where facts or pairs of facts were held out altogether, the model can't know the answers


def demo_tasks(*, count: int = 40, seed: int = 1) -> dict[str, Task]:
    """Skill -> task of at most `count` items with choices, in all languages of the skill."""
    return {name: generated(name, split=split, count=count, seed=seed) for name, split in SPLITS.items()}
