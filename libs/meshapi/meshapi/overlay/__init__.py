"""Generated from proto/meshapi/overlay by `make proto`."""
