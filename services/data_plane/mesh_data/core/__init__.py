"""Decisions of the data plane: pure, synchronous, deterministic; time and randomness are passed in."""
