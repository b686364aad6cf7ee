"""How long tests wait for what must happen."""

DEADLINE = 30.0
"""Seconds after which something that must happen counts as not happening; the other processes are busy too."""
