"""Proofs that no restart, death or stall of a collector loses a datagram: run by ``make chaos``."""
