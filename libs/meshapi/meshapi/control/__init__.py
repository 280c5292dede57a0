"""Generated from proto/meshapi/control by `make proto`."""
