"""Generated from proto/meshapi/supervisor by `make proto`."""
