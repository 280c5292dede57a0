"""Settings that every test in the tree shares.

Leaves out fixtures: those live in `meshtest` or beside the tests that use them.
"""

from __future__ import annotations

import signal

from hypothesis import settings

# No deadline: machines that run the tests are shared, and a slow example is no failure. The blob makes any failure
# repeatable from the log alone.
settings.register_profile("mesh", deadline=None, print_blob=True)
settings.load_profile("mesh")

# A shell's background job starts with SIGINT ignored, and every process would inherit that: tests that press Ctrl-C would
# wait for ever. A handler, unlike being ignored, does not outlive exec.
signal.signal(signal.SIGINT, signal.default_int_handler)
