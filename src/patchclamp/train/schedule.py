"""Learning-rate schedule: warm up, stay, decay to zero (WSD), with a decay that wall time may bring forward."""

from __future__ import annotations

from dataclasses import dataclass

DECAY_SHARE = 0.25


@dataclass
class Schedule:
    """total_steps may shrink once, when the time limit draws near; the decay is always the last quarter."""

    total_steps: int
    warmup_steps: int = 100

    @property
    def decay_start(self) -> int:
        """First step of the decay."""
        return round(self.total_steps * (1 - DECAY_SHARE))

    def factor(self, step: int) -> float:
        """Multiplier of the peak learning rate at `step` (from 0), in [0, 1]; 1 - sqrt decay (Hägele et al. 2024)."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if step < self.decay_start:
            return 1.0
        done = (step - self.decay_start) / max(1, self.total_steps - self.decay_start)
        return max(0.0, 1.0 - done**0.5)

    def decay_if_late(self, step: int, minutes: float, max_minutes: float | None) -> bool:
        """Start the decay at `step` if three quarters of the time are gone; True if that shortened the run.

        The decay then takes a third of the steps already made: at constant speed the run ends at `max_minutes`.
        """
        late = max_minutes is not None and minutes >= max_minutes * (1 - DECAY_SHARE)
        if not late or step >= self.decay_start:
            return False
        self.total_steps = max(step + 1, round(step / (1 - DECAY_SHARE)))
        return True
