"""The command line: one file per verb, which alone knows flags; `terminal/` has everything that draws."""
