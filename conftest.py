"""Settings that every test in the tree shares.

Leaves out fixtures: those live in `meshtest` or beside the tests that use them.
"""

from __future__ import annotations

from hypothesis import settings

# No deadline: machines that run the tests are shared, and a slow example is no failure. The blob makes any failure
# repeatable from the log alone.
settings.register_profile("mesh", deadline=None, print_blob=True)
settings.load_profile("mesh")
