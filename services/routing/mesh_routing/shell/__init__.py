"""Input and output of the routing service."""
