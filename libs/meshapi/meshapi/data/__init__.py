"""Generated from proto/meshapi/data by `make proto`."""
