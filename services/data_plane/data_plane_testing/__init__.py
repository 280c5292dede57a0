"""What tests of the data plane share. Not in its wheel; under a name of its own, because every project's tests are `tests`."""
