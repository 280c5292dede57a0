"""Decisions of the routing service: pure, synchronous, deterministic."""
