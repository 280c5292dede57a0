"""Generated from proto/meshapi/data/v1 by `make proto`."""
