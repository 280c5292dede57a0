"""Generated from proto/meshapi/common by `make proto`."""
