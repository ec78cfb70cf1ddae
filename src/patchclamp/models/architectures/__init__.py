"""Model types of our own, one file each; importing a file registers its config and model with the Auto classes."""
