"""Where unix sockets of a site go: beside its data, or in a short directory when the path would be too long.

The kernel takes 107 bytes as the path of a socket, gRPC only plain characters in it. Who may enter the directory is
decided by whoever binds there: our services refuse one that is open to others.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from meshcommon.address import UNIX_PATH_BYTES_MAX, unix_path
from meshcommon.errors import MeshError


def socket_directory(wanted: Path, name_bytes_max: int) -> Path:
    """`wanted` if sockets fit there, else one named after it in the system's directory for temporary files.

    Always the same for the same path, so that a later run finds it again.

    Args:
        wanted: An absolute path.
        name_bytes_max: Length of the longest name of a socket there, with the slash.
    """
    try:
        unix_path(f"unix:{wanted}")
        if len(str(wanted)) + name_bytes_max <= UNIX_PATH_BYTES_MAX:
            return wanted
    except MeshError:
        pass
    name = hashlib.sha256(str(wanted).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"mesh-{name}"
