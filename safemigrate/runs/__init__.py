"""Recorded runs: found, claimed, shared by workers, and ended."""
