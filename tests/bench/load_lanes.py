"""Members that open lanes to the hub as fast as it takes them, and close them again; prints one JSON line of figures.

A lane counts when the hub's first frame on it has come: then the hub has checked the Finished. Each handshake is a whole one:
a TCP connection, TLS 1.3 without resumption, the WebSocket upgrade, three frames each way, and a delegation that the hub sees
for the first time, so that it checks two signatures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import time
from dataclasses import replace
from typing import Any, Final

import uvloop

from mesh_data.core.handshake import Handshake, Role, Terms
from mesh_data.core.membership_desk import membership_of
from mesh_data.shell.overlay.dialler import connect_lane
from mesh_data.shell.overlay.lane_session import shake_hands
from meshcommon.boot_certificate import any_server
from meshcommon.delegation import Delegations
from meshcommon.ids import NodeId
from meshcommon.key_signer import PRIVATE_KEY_BYTES, KeySigner
from tests.bench import hub

_WARM_UP_S: Final = 1.0
_TIMEOUT_S: Final = 5.0


async def open_once(address: str, terms: Terms, node: NodeId) -> None:
    """One lane of a member, up and closed again; raises MeshError when it is refused."""
    key = KeySigner(secrets.token_bytes(PRIVATE_KEY_BYTES))
    local = hub.member(node, hub.with_new_delegation(node, key, time.time()))
    socket = await connect_lane(address, _TIMEOUT_S, any_server())
    try:
        seen = replace(terms, certificate_seen=socket.peer_certificate)
        deadline = time.monotonic() + _TIMEOUT_S
        shaking = Handshake(Role.DIALLER, local, seen, secrets.token_bytes(32), secrets.token_bytes(32), deadline)
        await shake_hands(socket, shaking, time.monotonic)
        async with asyncio.timeout(_TIMEOUT_S):
            await socket.receive()
    finally:
        socket.abort()


async def flood(address: str, nodes: list[NodeId], seconds: float) -> dict[str, Any]:
    """Every member opens one lane after the other; how many a second there were, and what that cost here."""
    view = hub.view_of(address)
    terms = Terms(
        Delegations(time.time),
        view=view,
        expected_peer=hub.HUB,
        membership_revision=view.revision,
        membership_digest=membership_of(view).digest,
    )

    async def run(until: float) -> int:
        async def one(node: NodeId) -> int:
            count = 0
            while time.monotonic() < until:
                await open_once(address, terms, node)
                count += 1
            return count

        return sum(await asyncio.gather(*(one(node) for node in nodes)))

    await run(time.monotonic() + _WARM_UP_S)
    print("warm", flush=True)
    started, cpu = time.monotonic(), time.process_time()
    opened = await run(started + seconds)
    return {"opened": opened, "seconds": time.monotonic() - started, "cpu_s": time.process_time() - cpu}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("nodes", help="ids of the members, separated by commas")
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    nodes = [NodeId(int(text)) for text in given.nodes.split(",")]
    print(json.dumps(uvloop.run(flood(given.address, nodes, given.seconds))))


if __name__ == "__main__":
    main()
