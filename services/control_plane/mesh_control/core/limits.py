"""Bounds on what the replicated state holds, checked in apply: no caller can make it grow for ever.

The view travels whole to every service of a site (gRPC takes 8 MiB), and to newcomers and members that lag as one packet of
the overlay (2 MiB), inside the group's snapshot. So view and remembered proposals together have to stay below that.
Source: architecture §7 "MCG", §11 "Everything from outside"; docs/design/bounds.md.
"""

from __future__ import annotations

from typing import Final

NODES_MAX: Final = 1_000
JOINING_MAX: Final = 32
"""Nodes that are JOINING at once: strangers cannot fill the mesh."""
JOINING_TIME_MS_MAX: Final = 10 * 60 * 1_000
"""A node that was not heard for this long of state time after its admission is removed."""
STREAMS_MAX: Final = 5_000
TOKENS_MAX: Final = 1_000
"""Join tokens, 150 bytes each in a snapshot."""
TOKEN_USES_MAX: Final = 1_000
TOKEN_TTL_MS_MAX: Final = 30 * 24 * 3600 * 1_000
CA_ROOTS_MAX: Final = 2
"""Roots of the mesh's CA: the present one, and one more while they are exchanged."""
CA_CERTIFICATE_BYTES_MAX: Final = 4096
CA_SEALED_MAX: Final = 16
"""Sealed keys of the intermediate: for each voter, and for those that voted until a moment ago."""
CA_FORMER_MAX: Final = 8
"""Intermediates before that are still accepted."""
CA_FORMER_MS: Final = 24 * 3600 * 1_000
"""How long one is: the life of the last certificate that it can have signed."""
VIEW_BYTES_MAX: Final = 1024**2
"""Encoded nodes and streams, above which nothing is admitted or created."""
RENEWAL_BYTES_MAX: Final = VIEW_BYTES_MAX + 256 * 1024
"""The same for what heals: a full mesh can still replace memberships that a disk has lost."""
REMEMBERED_PROPOSALS_MAX: Final = 1024
REMEMBERED_TEXT_BYTES_MAX: Final = 240
"""Of a refusal's sentence that is kept for repeats of the proposal."""
REMEMBERED_DETAILS_BYTES_MAX: Final = 200
"""Of its details, which are left out beyond that."""
INTEGER_MAX: Final = 2**63 - 1
"""What a column of Postgres holds."""
TIME_MS_MAX: Final = 253_402_300_799_000
"""The last second of the year 9999, the end of Python's and Postgres' calendars here."""
