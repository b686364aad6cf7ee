"""Frozen snapshots of what a collector counted."""
