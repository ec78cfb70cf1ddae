"""Floor 0: what every room needs and none owns: errors, files, provenance, registries, progress."""
