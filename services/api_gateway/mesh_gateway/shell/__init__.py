"""Listeners of the gateway and its channels to the other services of the node."""
