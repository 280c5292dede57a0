"""Generated from proto/meshapi/supervisor/v1 by `make proto`."""
