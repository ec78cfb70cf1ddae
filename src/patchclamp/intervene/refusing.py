"""What an abstention runs: keys are looked at where they enter the down projection, logits forced where one was inside.

One forward pass shows all its keys before its logits, so a verdict reached at a position already decides that position's next
token. What must be remembered from one pass to the next (with a KV cache) is the column at which each row began to refuse.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchclamp.intervene.key_space import Region
from patchclamp.intervene.noise import TextKeys
from patchclamp.models.hooks import Seen, Step
from patchclamp.record.statistics.base import wide

FORCED = 30.0  # logit of the forced token; all others get 0
NEVER = 2**62  # a column that no text reaches


class Looking:
    """The positions of one forward pass that are looked at.

    end: (batch,) column of each row's last prompt token; the last real one where nothing is generated. checked: (batch, seq)
    bool. places: flat positions that are checked. columns: (seq,).
    """

    def __init__(self, step: Step, when: str) -> None:
        self.step, device = step, step.device
        self.columns = torch.arange(step.start, step.start + step.seq, device=device)
        self.real = torch.ones(step.batch, step.seq, dtype=torch.bool, device=device)
        if step.attention_mask is not None:
            self.real = step.attention_mask.to(device).bool()
        if step.prompt_length is None:
            self.end = torch.where(self.real, self.columns, -1).amax(1)
        elif isinstance(step.prompt_length, int):
            self.end = torch.full((step.batch,), step.prompt_length - 1, device=device)
        else:
            self.end = step.prompt_length.to(device) - 1
        end = self.end[:, None]
        chosen = {"prompt": self.columns == end, "any": self.columns >= end, "all": self.columns <= end}[when]
        self.checked = chosen & self.real
        self.places = self.checked.reshape(-1).nonzero()[:, 0]


class Distances:
    """How far the checked keys of one pass lie from the middle of a region, gathered slab by slab (a layer may be experts)."""

    def __init__(self, region: Region, alpha: float) -> None:
        self.tap, self.region, self.limit = (region.site, region.layer), region, alpha * region.k
        self._numbers: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._covered = torch.zeros(len(region.mean), dtype=torch.bool)
        self._far: Tensor | None = None

    def begin(self) -> None:
        """Forget the pass before."""
        self._covered.zero_()
        self._far = None

    def add(self, seen: Seen, places: Tensor) -> None:
        """Take in a slab: standard deviations from the mean, the largest over its coordinates. places: as of `Looking`."""
        device = seen.values.device
        mean, std = self._on(device)
        where = slice(seen.offset, seen.offset + seen.values.shape[1])
        mean, std, places = mean[where], std[where], places.to(device)
        if seen.rows is None:
            far = self._farthest(seen.values[places], mean, std)
        else:  # an expert: what was not given to it is 0 there
            far = (mean.abs() / std).max().expand(seen.step.batch * seen.step.seq).clone()
            far[seen.rows] = self._farthest(seen.values, mean, std)
            far = far[places]
        self._covered[where] = True
        self._far = far if self._far is None else torch.maximum(self._far, far.to(self._far.device))

    def of_all(self) -> Tensor | None:
        """(n_places,) largest distance in standard deviations, NaN for keys that hold one; None if no key came in."""
        if self._far is None or bool(self._covered.all()):
            return self._far
        mean, std = self._on(self._far.device)  # experts that no token went to
        left = ~self._covered.to(mean.device)
        return self._far.clamp(min=float((mean.abs() / std)[left].max()))

    @staticmethod
    def _farthest(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return ((values.detach().to(mean.dtype) - mean).abs() / std).amax(1)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._numbers:
            dtype = wide(device)
            pair = [torch.from_numpy(each).to(device, dtype) for each in (self.region.mean, self.region.std)]
            self._numbers[device] = (pair[0], pair[1])
        return self._numbers[device]


class Refusing:
    """State and functions of one abstention on one model: `look` for the regions' taps, `force` for the logits."""

    def __init__(
        self, boxes: Sequence[tuple[Region, float]], when: str, spoken: Sequence[int], end: int | None
    ) -> None:
        """boxes: regions with their alpha. spoken: ids of the refusal. end: id after it; None says the refusal again."""
        self.when, self.spoken, self.end = when, list(spoken), end
        self.boxes = [Distances(region, alpha) for region, alpha in boxes]
        self.text = TextKeys()
        self._now: Looking | None = None
        self._decided = False
        self._since: Tensor | None = None  # (batch,) column at which each row began to refuse
        self._group: Tensor | None = None  # (batch,) first row with the same prompt
        self._all_inside: Tensor | None = None  # (batch,) whether all keys of the prompt so far were inside

    def look(self, seen: Seen) -> Tensor:
        """Keep how far the keys of this pass lie out; changes nothing."""
        now = self._now
        if now is None or now.step is not seen.step:
            now = self._begin(seen.step)
        if len(now.places):
            for box in self.boxes:
                if box.tap == (seen.site, seen.layer):
                    box.add(seen, now.places)
        return seen.values

    def force(self, seen: Seen) -> Tensor:
        """Logits in which refusing rows have no choice."""
        step, values = seen.step, seen.values
        if self._now is None or self._now.step is not step:  # the regions' layers were not run
            return values
        since = self._decide(self._now).to(values.device)
        if bool((since >= NEVER).all()):
            return values
        rows = torch.arange(len(values), device=values.device) if seen.rows is None else seen.rows.to(values.device)
        said = step.start + rows % step.seq - since[rows // step.seq]  # tokens of the refusal said before
        refusing = (said >= 0).nonzero()[:, 0]
        forced = values.clone()
        forced[refusing] = 0.0
        forced[refusing, self._tokens(said[refusing])] = FORCED
        return forced

    def _begin(self, step: Step) -> Looking:
        self._now, self._decided = Looking(step, self.when), False
        for box in self.boxes:
            box.begin()
        if step.start == 0 or self._since is None or len(self._since) != step.batch:
            self._since = torch.full((step.batch,), NEVER, device=step.device)
            self._group = self._all_inside = None
            if self.when == "any" and self.text.knows(step):
                self._group = self._same_prompt(self._now)
        return self._now

    def _decide(self, now: Looking) -> Tensor:
        """(batch,) since when each row refuses, NEVER for rows that don't; worked out once per pass."""
        since = torch.zeros(0) if self._since is None else self._since
        far = [(box, found) for box in self.boxes if (found := box.of_all()) is not None]
        if self._decided or not far:
            return since
        self._decided = True
        inside = torch.zeros(now.checked.numel(), dtype=torch.bool, device=since.device)
        for box, found in far:
            inside[now.places] |= (found <= box.limit).to(inside.device)  # NaN lies outside
        inside = inside.view(now.checked.shape)
        if self.when == "all":
            inside = self._whole_prompt(inside, now)
        since = torch.minimum(since, torch.where(inside, now.columns, NEVER).amin(1))
        if (
            self._group is not None and now.step.start
        ):  # beams trade places between passes: those of one prompt go together
            first = torch.full_like(since, NEVER).scatter_reduce_(0, self._group, since, "amin")
            since = first[self._group]
        self._since = since
        return since

    def _whole_prompt(self, inside: Tensor, now: Looking) -> Tensor:
        """At the prompt's end, whether the keys of the whole prompt were inside; elsewhere False."""
        so_far = (inside | ~now.checked).all(1)
        if self._all_inside is not None:
            so_far &= self._all_inside
        self._all_inside = so_far
        return so_far[:, None] & now.checked & (now.columns == now.end[:, None])

    def _same_prompt(self, now: Looking) -> Tensor:
        """(batch,) for each row the first one that began with the same tokens."""
        keys = self.text.of(now.step).view(now.real.shape)
        prompt = now.real & (now.columns <= now.end[:, None])
        _, group = torch.unique((keys * prompt).sum(1), return_inverse=True)
        rows = torch.arange(len(group), device=group.device)
        return torch.full_like(rows, len(rows)).scatter_reduce_(0, group, rows, "amin")[group]

    def _tokens(self, said: Tensor) -> Tensor:
        """The token forced after so many of the refusal, (n,)."""
        spoken = torch.tensor(self.spoken, device=said.device)
        if self.end is None:
            return spoken[said % len(spoken)]
        return torch.where(said < len(spoken), spoken[said.clamp(max=len(spoken) - 1)], self.end)
