"""Generated from proto/meshapi/routing/v1 by `make proto`."""
