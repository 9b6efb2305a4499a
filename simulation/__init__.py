"""A federation on one machine: imports everything, imported by nothing."""
