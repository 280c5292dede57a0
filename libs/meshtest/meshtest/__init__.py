"""The mesh's test kit: embedded stores, a node runner, a fault proxy, checkers, and the demo that shows them at work."""

from __future__ import annotations

import os

# Before anything imports grpc: we start processes but never go on in a forked one, so its fork handlers only cost lines
# in what a person reads.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
