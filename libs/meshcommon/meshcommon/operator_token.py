"""The operator's token of a site: who may use a listener that other machines reach (ADR 0023, docs/design/edges.md).

A file holds what is accepted, one a line: the SHA-256 of a token (`sha256:` and 64 hex digits), or a token itself, as a secret
that Compose or Kubernetes mounts. Only hashes stay in memory. A caller shows `Authorization: Bearer TOKEN`; its hash is
compared with all of them, each in constant time. The file is read again when it changes, so that a token can be replaced
without a restart; connections that are open go on. A file that becomes unusable changes nothing and warns.
Leaves out: users and rights: there is one operator, who may do everything. Source: RFC 6750 §2.1, §3.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import unquote

from meshcommon.address import is_exposed
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import get_logger
from meshcommon.wrong_proofs import WrongProofs

FILE_NAME: Final = "operator-token"
"""In the node's data directory, where no setting names another file."""
FILE_BYTES_MAX: Final = 4_096
TOKENS_MAX: Final = 4
"""Accepted at a time: more than one only while clients change over."""
TOKEN_CHARACTERS_MIN: Final = 43
"""256 bits in base64url. A shorter one could be guessed, for the limit on wrong ones is by host."""
TOKEN_CHARACTERS_MAX: Final = 512
LOOK_EVERY_S: Final = 5.0
"""Between two looks at the file. Cost: reading it."""
CHALLENGE: Final = 'Bearer realm="mesh"'
"""`WWW-Authenticate` of a 401."""
_PREFIX: Final = "meshop1."
_TOKEN: Final = re.compile(
    rf"[A-Za-z0-9._~+/-]{{{TOKEN_CHARACTERS_MIN - 1},{TOKEN_CHARACTERS_MAX - 2}}}[A-Za-z0-9._~+/=-]{{1,2}}", re.ASCII
)
_HASHED: Final = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_WARNING: Final = "operator's token"
_HEALTH_CALL: Final = "/grpc.health.v1.Health/Check"

_log = get_logger(__name__)


def new_token() -> str:
    """A token of 32 random bytes. The prefix lets scanners of sources find one that was committed by mistake."""
    return _PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()


def hashed_line(token: str) -> str:
    """The line of the file that accepts `token`."""
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}\n"


def is_token(text: str) -> bool:
    """Whether `text` has the form of a token: RFC 6750's characters, and as long as 256 bits are at least."""
    return len(text) <= TOKEN_CHARACTERS_MAX and _TOKEN.fullmatch(text) is not None


def parse_tokens(data: bytes) -> tuple[bytes, ...]:
    """The SHA-256 of each token that the file's content accepts.

    Raises:
        ValueError: what is wrong with it, as the end of a sentence; never with a part of the content.
    """
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"has more than {FILE_BYTES_MAX} bytes")
    try:
        lines = [line.strip() for line in data.decode("ascii").splitlines()]
    except UnicodeDecodeError:
        raise ValueError("holds bytes that are no ASCII") from None
    digests = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if (hashed := _HASHED.fullmatch(line)) is not None:
            digests.append(bytes.fromhex(hashed.group(1)))
        elif line.startswith("sha256:") or not is_token(line):
            raise ValueError(
                f"holds neither a token nor the hash of one in line {number}: a token has "
                f"{TOKEN_CHARACTERS_MIN} to {TOKEN_CHARACTERS_MAX} of A-Z, a-z, 0-9 and ._~+/-"
            )
        else:
            digests.append(hashlib.sha256(line.encode()).digest())
    if not 1 <= len(digests) <= TOKENS_MAX:
        raise ValueError(f"holds {len(digests)} tokens, and 1 to {TOKENS_MAX} are taken")
    return tuple(digests)


class OperatorToken:
    """What is accepted on the listeners of one process. Belongs to one event loop."""

    def __init__(self, path: Path, setting: str, *, now: Callable[[], float] = time.monotonic) -> None:
        """Reads the file.

        Args:
            path: The file.
            setting: Name of the setting that may name the file, for texts.
            now: Monotonic seconds.

        Raises:
            MeshError: SETTING_INVALID, with the path, what is wrong with it and what to do.
        """
        self._path = path
        self._setting = setting
        self._now = now
        self._wrong = WrongProofs("operator's tokens")
        self._digests = self._read()

    @classmethod
    def of_settings(cls, file: str, data_dir: Path, setting: str) -> Self | None:
        """The token of the file that the setting names, else of the one in the node's data directory; None without any.

        Raises:
            MeshError: SETTING_INVALID.
        """
        if file:
            return cls(Path(file), setting)
        made_here = data_dir / FILE_NAME
        return cls(made_here, setting) if made_here.exists() else None

    def on(self, listen: str) -> Self | None:
        """What guards the listener at `listen`: nothing where only this machine reaches it."""
        return self if is_exposed(listen) else None

    def admit(self, shown: Sequence[str], host: str) -> None:
        """Lets a request pass that shows an accepted token.

        A right token passes whatever came from its host before: others behind the same address cannot lock its owner out.

        Args:
            shown: The values of all its `Authorization` headers.
            host: IP address that it comes from.

        Raises:
            MeshError: OPERATOR_TOKEN_REQUIRED, OPERATOR_TOKEN_WRONG; BACKPRESSURE after several wrong ones from that
                host; INVALID_ARGUMENT for more than one header.
        """
        if len(shown) > 1:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "The header 'authorization' is there twice: send it once.")
        scheme, _, token = (shown[0] if shown else "").partition(" ")
        if scheme.lower() != "bearer":
            raise MeshError(
                ErrorCode.OPERATOR_TOKEN_REQUIRED,
                "This listener wants the operator's token of this site: send it as `Authorization: Bearer TOKEN` "
                "(meshctl --token-file FILE, or MESH_TOKEN).",
            )
        if self._is_accepted(token):
            return
        self._wrong.check(host, self._now())
        self._wrong.note(host, self._now())
        raise MeshError(
            ErrorCode.OPERATOR_TOKEN_WRONG,
            "The operator's token is not the one of this site: use the one that was printed when it was made, or make "
            "another one on the node (`meshctl operator-token rotate`).",
        )

    async def admit_call(self, method: str, context: Any) -> None:
        """The same for a gRPC call of `method` (`/SERVICE/METHOD`); the health check passes without a token."""
        if method == _HEALTH_CALL:
            return
        shown = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
        # `ipv4:127.0.0.1:80` or `ipv6:%5B::1%5D:80`
        address = unquote(context.peer()).partition(":")[2].rpartition(":")[0]
        self.admit(shown, address.strip("[]"))

    def _is_accepted(self, token: str) -> bool:
        if len(token) > TOKEN_CHARACTERS_MAX:
            return False
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        # All are compared, each in constant time: how long it takes tells neither which one nor how much of it is right.
        return sum([hmac.compare_digest(digest, accepted) for accepted in self._digests]) > 0

    async def run(self, readiness: Readiness) -> None:
        """Looks at the file until cancelled. What is wrong with it is a warning of `readiness`, and logged once."""
        warned = ""
        while True:
            warning = await self.look()
            if warning:
                readiness.warn(_WARNING, warning)
                if warning != warned:
                    _log.warning("operator_token_file", message=warning)
            else:
                readiness.clear(_WARNING)
            warned = warning
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> str:
        """Takes what the file accepts now; returns what is wrong with it, else the empty string."""
        try:
            digests = await asyncio.to_thread(self._read)
        except MeshError as error:
            return f"{error.message} Until then the tokens that were read last are accepted."
        if digests != self._digests:
            self._digests = digests
            _log.info("operator_token_changed", tokens=len(digests))
        return ""

    def _read(self) -> tuple[bytes, ...]:
        try:
            with self._path.open("rb") as file:
                return parse_tokens(file.read(FILE_BYTES_MAX + 1))
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
        except ValueError as error:
            why = str(error)
        raise MeshError(
            ErrorCode.SETTING_INVALID,
            f"The file of the operator's token, {self._path} ({self._setting}), {why}: make one with "
            "`meshctl operator-token rotate`, or correct the path.",
            {"setting": self._setting},
        )
