"""Generated from proto/meshapi/routing by `make proto`."""
