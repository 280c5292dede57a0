"""Decisions of the control plane: no sockets, files, clocks, threads or randomness of its own."""
