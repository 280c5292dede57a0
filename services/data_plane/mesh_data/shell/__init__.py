"""Input and output of the data plane: sockets, timers, files and gRPC around the cores."""
