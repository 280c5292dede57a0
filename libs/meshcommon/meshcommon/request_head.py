"""What the head of an HTTP request may be, beyond what the HTTP parser itself refuses.

The parser bounds a head that is not complete yet; one that arrives in a single piece passes it at any size. Two framings
of one body let a proxy in front see another request than the service (request smuggling). A coded body would be stored
as if it were plain. Pure. Source: RFC 9112 §6.3, RFC 9110 §8.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.peer_text import printable

HEAD_BYTES_MAX: Final = 16 * 1024
"""Request target and header lines."""
_LINE_OVERHEAD_BYTES: Final = 4
"""`: ` and the line's end."""
_FRAMINGS: Final = frozenset({b"content-length", b"transfer-encoding"})


def check_head(headers: Iterable[tuple[bytes, bytes]], target_bytes: int) -> None:
    """Refuses a head that is too large, frames its body twice, or says that the body is coded.

    Args:
        headers: Names in lower case, and values.
        target_bytes: Length of path and query.

    Raises:
        MeshError: INVALID_ARGUMENT, or MEDIA_TYPE_NOT_SUPPORTED for a coded body.
    """
    size_bytes = target_bytes
    framings: set[bytes] = set()
    for name, value in headers:
        size_bytes += len(name) + len(value) + _LINE_OVERHEAD_BYTES
        if name in _FRAMINGS:
            framings.add(name)
        elif name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            shown = printable(value.decode("latin-1"))
            text = f"A body with Content-Encoding {shown!r} is not taken: send it as it is, without that header."
            raise MeshError(ErrorCode.MEDIA_TYPE_NOT_SUPPORTED, text)
    if size_bytes > HEAD_BYTES_MAX:
        text = f"The request's path and headers take {size_bytes} bytes, at most {HEAD_BYTES_MAX} are taken."
        raise MeshError(ErrorCode.INVALID_ARGUMENT, text, {"limit": str(HEAD_BYTES_MAX)})
    if len(framings) > 1:
        text = "The request has both Content-Length and Transfer-Encoding: send one of them."
        raise MeshError(ErrorCode.INVALID_ARGUMENT, text)
