"""Generated from proto/meshapi/overlay/v1 by `make proto`."""
