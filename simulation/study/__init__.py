"""Grids of cells: one question, one table; every cell a campaign that can be typed as a command."""
