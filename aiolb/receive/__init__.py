"""Interchangeable receivers: each takes datagrams off a socket in batches."""
