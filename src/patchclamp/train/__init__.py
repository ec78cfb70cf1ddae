"""Training: the demo model's own command, and steps that know about neurons."""
