"""Generated from proto/meshapi by `make proto`."""
