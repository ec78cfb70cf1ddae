"""Floor 9: the command line, a thin face of the library. One file per command; no logic of its own."""
