"""Generated from proto/meshapi/control/v1 by `make proto`."""
