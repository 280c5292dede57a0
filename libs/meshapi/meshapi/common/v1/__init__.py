"""Generated from proto/meshapi/common/v1 by `make proto`."""
