"""Who may join, as an operator sees it: each policy with each kind of token, through a member that is hard to join through.

a founded the mesh and alone votes. b only dials: it advertises no address, so a cannot dial it, and it has no vote. x and y
want to join; they reach b and nobody else, so each admission and each later packet to a is relayed by b. All of it through
`meshctl`, and no site has stores. What a forger could do with tokens is in `tests/attacks/test_tokens.py`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from mesh_control.core.join_tokens import JoinKey, encode_token, parse_token
from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.site import MODULES, PORTS_PER_SITE, Site, SiteConfig, name_ports
from meshtest.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
OTHER_MESH = "6f1c2d9e-1111-4222-8333-944455556666"
OTHER_SECRET = bytes(range(32))
ADMITTED = "admitted"
WITHOUT_STORES = {"MESH_NODE_POSTGRES_URL": "", "MESH_NODE_REDIS_URL": ""}


@dataclass(frozen=True, slots=True)
class Mesh:
    """The four sites and their gateways."""

    sites: dict[str, Site]
    gateways: dict[str, Gateway]

    @property
    def door(self) -> str:
        """The peer address of b, which b does not advertise."""
        return f"wss://127.0.0.1:{self.sites['b'].config.ports['peer']}"

    async def ctl(self, site: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The program as an operator runs it."""
        command = [sys.executable, "-m", "meshctl", "--gateway", self.sites[site].config.gateway, *arguments]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)

    async def join(self, *arguments: str, site: str = "x") -> str:
        """ADMITTED, or the code of the refusal; what is printed is for people, and shows no secret."""
        done = await self.ctl(site, "join", *arguments)
        print(site, done.stdout.strip() or done.stderr.strip())
        if not done.returncode:
            assert done.stdout.startswith("joined mesh "), done.stdout
            return ADMITTED
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.endswith(".\n"), done.stderr
        assert not any(argument in done.stderr for argument in arguments if argument.startswith("mesh1."))
        said, code, _text = done.stderr.split(": ", 2)
        assert said == "error"
        assert (await self.gateways[site].status()).node_id == 0
        return code

    async def by_token(self, token: str) -> str:
        """A join of x through b."""
        return await self.join(token, "--address", self.door)

    async def empty(self) -> None:
        """X and y leave again, and a and b know."""
        for site in ("x", "y"):
            if (await self.gateways[site].status()).node_id:
                await eventually(f"{site} left", partial(self._left, site))

        async def are_alone() -> bool:
            views = [(await self.gateways[site].status()).view for site in ("a", "b")]
            return all(len(view.nodes) == 2 for view in views)

        await eventually("a and b are alone", are_alone)

    async def _left(self, site: str) -> bool:
        await self.gateways[site].leave()
        return True

    async def voters(self) -> set[str]:
        """Names of the nodes that vote, as a knows them."""
        return {node.name for node in (await self.gateways["a"].status()).view.nodes if node.is_voter}


def plan(directory: Path) -> dict[str, SiteConfig]:
    """Where the four live, and whom each can dial."""
    ports = free_ports(4 * PORTS_PER_SITE + 1)
    dead = f"wss://127.0.0.1:{ports[-1]}"
    configs: dict[str, SiteConfig] = {}
    for number, name in enumerate("abxy"):
        own = name_ports(ports[number * PORTS_PER_SITE : (number + 1) * PORTS_PER_SITE])
        configs[name] = SiteConfig(name, directory / name, own, is_listening=name in "ab", extra=WITHOUT_STORES)
    door = f"wss://127.0.0.1:{configs['b'].ports['peer']}"
    configs["b"] = replace(configs["b"], extra=WITHOUT_STORES | {"MESH_CONTROL_PEER_ADDRESS": ""})
    for name in "xy":
        configs[name] = replace(configs[name], dial={"a": dead, "b": door})
    return configs


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[Mesh]:
    """A and b are a mesh, x and y are free."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-e2e-")))
        sites = {name: Site(config) for name, config in plan(directory).items()}
        try:
            for site in sites.values():
                for service in MODULES:
                    site.start_service(service)
            await asyncio.gather(*(site.wait_until_answering() for site in sites.values()))
            gateways = {
                name: await stack.enter_async_context(Gateway(site.config.gateway)) for name, site in sites.items()
            }
            found = Mesh(sites, gateways)
            seeded = await found.ctl("a", "seed", "--name", "matrix", "--policy", "key-required")
            token = seeded.stdout.strip().splitlines()[-1].split()[-1]
            joined = await found.ctl("b", "join", token)
            assert joined.returncode == 0, (seeded, joined)
            yield found
        finally:
            await asyncio.gather(*(site.stop() for site in sites.values()))


async def valid(mesh: Mesh) -> list[str]:
    return [await mesh.by_token(await mesh.gateways["a"].issue_token())]


async def expired(mesh: Mesh) -> list[str]:
    token = await mesh.gateways["a"].issue_token(ttl_s=1)
    await asyncio.sleep(1.2)
    return [await mesh.by_token(token)]


async def used_twice_at_once(mesh: Mesh) -> list[str]:
    token = await mesh.gateways["b"].issue_token()
    joins = (mesh.join(token, "--address", mesh.door, site=site) for site in ("x", "y"))
    return sorted(await asyncio.gather(*joins))


async def of_another_mesh(mesh: Mesh) -> list[str]:
    return [await mesh.by_token(encode_token(JoinKey(OTHER_MESH, (), OTHER_SECRET)))]


async def revoked(mesh: Mesh) -> list[str]:
    token = await mesh.gateways["a"].issue_token()
    listed = (await mesh.gateways["a"].mesh.ListTokens(mesh_pb2.ListTokensRequest(), timeout=20)).tokens
    assert (await mesh.ctl("a", "token", "revoke", listed[-1].token_id)).returncode == 0

    async def is_known_to_b() -> bool:
        known = (await mesh.gateways["b"].mesh.ListTokens(mesh_pb2.ListTokensRequest(), timeout=20)).tokens
        return listed[-1].token_id not in {item.token_id for item in known}

    await eventually("b knows that it was revoked", is_known_to_b)
    return [await mesh.by_token(token)]


async def with_another_secret(mesh: Mesh) -> list[str]:
    key = parse_token(await mesh.gateways["a"].issue_token())
    return [await mesh.by_token(encode_token(replace(key, secret=bytes((key.secret[0] ^ 1,)) + key.secret[1:])))]


async def with_another_mesh_id(mesh: Mesh) -> list[str]:
    key = parse_token(await mesh.gateways["a"].issue_token())
    return [await mesh.by_token(encode_token(replace(key, mesh_id=OTHER_MESH)))]


async def for_another_name(mesh: Mesh) -> list[str]:
    return [await mesh.by_token(await mesh.gateways["a"].issue_token(name="z"))]


async def for_another_name_rewritten(mesh: Mesh) -> list[str]:
    """The name in the line is for people: the mesh knows for whom it was."""
    key = parse_token(await mesh.gateways["a"].issue_token(name="z"))
    return [await mesh.by_token(encode_token(replace(key, name="x")))]


async def none_at_all(mesh: Mesh) -> list[str]:
    return [await mesh.join(mesh.door, "--trust-first")]


CASES: list[tuple[Callable[[Mesh], Awaitable[list[str]]], list[str], list[str], list[str]]] = [
    (valid, [ADMITTED], [ADMITTED], ["JOIN_CLOSED"]),
    (none_at_all, [ADMITTED], ["TOKEN_REQUIRED"], ["JOIN_CLOSED"]),
    (expired, ["TOKEN_EXPIRED"], ["TOKEN_EXPIRED"], ["JOIN_CLOSED"]),
    (used_twice_at_once, ["TOKEN_USED_UP", ADMITTED], ["TOKEN_USED_UP", ADMITTED], ["JOIN_CLOSED"] * 2),
    (of_another_mesh, ["MESH_ID_MISMATCH"], ["MESH_ID_MISMATCH"], ["MESH_ID_MISMATCH"]),
    (with_another_mesh_id, ["MESH_ID_MISMATCH"], ["MESH_ID_MISMATCH"], ["MESH_ID_MISMATCH"]),
    (revoked, ["TOKEN_UNKNOWN"], ["TOKEN_UNKNOWN"], ["TOKEN_UNKNOWN"]),
    (with_another_secret, ["TOKEN_UNKNOWN"], ["TOKEN_UNKNOWN"], ["TOKEN_UNKNOWN"]),
    (for_another_name, ["TOKEN_FOR_ANOTHER_NAME"], ["TOKEN_FOR_ANOTHER_NAME"], ["JOIN_CLOSED"]),
    (for_another_name_rewritten, ["TOKEN_FOR_ANOTHER_NAME"], ["TOKEN_FOR_ANOTHER_NAME"], ["JOIN_CLOSED"]),
]
"""What is tried, and what comes of it in an OPEN mesh, with KEY_REQUIRED, and in a CLOSED one."""


@pytest.mark.parametrize("policy", ["open", "key-required", "closed"])
async def test_each_policy_with_each_kind_of_token(mesh: Mesh, policy: str) -> None:
    """The policy is changed at a while the mesh runs, and holds for the next join through b."""
    column = ["open", "key-required", "closed"].index(policy)
    try:
        assert (await mesh.ctl("a", "policy", "set", policy)).returncode == 0
        for case, *columns in CASES:
            assert await case(mesh) == columns[column], case.__name__
            await mesh.empty()
    finally:
        await mesh.gateways["a"].mesh.SetJoinPolicy(
            mesh_pb2.SetJoinPolicyRequest(policy=view_pb2.JOIN_POLICY_KEY_REQUIRED), timeout=20
        )
        await mesh.empty()


async def test_newcomer_is_admitted_and_served_by_a_member_without_a_vote_that_only_dials(mesh: Mesh) -> None:
    """Its packets to the voter go through b afterwards, too."""
    assert await mesh.voters() == {"a"}
    view = (await mesh.gateways["a"].status()).view
    assert [node.peer_address for node in view.nodes if node.name == "b"] == [""], "a could dial b"
    assert await mesh.by_token(await mesh.gateways["b"].issue_token(name="x")) == ADMITTED

    async def is_relayed() -> bool:
        return list((await mesh.gateways["x"].ping("a")).path) == ["x", "b", "a"]

    try:
        await eventually("x reaches a through b", is_relayed)
        assert len((await mesh.gateways["x"].status()).view.nodes) == 3
    finally:
        await mesh.empty()


async def test_token_that_names_another_root_is_refused_by_the_newcomer(mesh: Mesh) -> None:
    """The mesh has admitted it by then: its place stays unused until it joins or is forgotten."""
    key = parse_token(await mesh.gateways["a"].issue_token())
    assert key.ca_fingerprint, "the token pins the root"
    changed = bytes((key.ca_fingerprint[0] ^ 1,)) + key.ca_fingerprint[1:]
    try:
        assert await mesh.by_token(encode_token(replace(key, ca_fingerprint=changed))) == "KEY_MISMATCH"
    finally:
        await mesh.gateways["a"].forget_node("x")
        await mesh.empty()


async def test_policy_that_is_changed_at_the_member_without_a_vote_holds_at_once(mesh: Mesh) -> None:
    """Nothing waits for the news to spread: the voter decides when the admission is applied."""
    token = await mesh.gateways["a"].issue_token()
    assert (await mesh.ctl("a", "policy", "set", "closed")).returncode == 0
    assert await mesh.by_token(token) == "JOIN_CLOSED"
    assert (await mesh.ctl("b", "policy", "set", "key-required")).returncode == 0
    assert await mesh.by_token(token) == ADMITTED
    await mesh.empty()


@pytest.mark.parametrize("damage", ["first", "middle", "last", "cut", "twice", "spaced"])
async def test_line_that_was_copied_badly_is_called_that(mesh: Mesh, damage: str) -> None:
    """Every character counts, and none of it is shown again."""
    token = await mesh.gateways["a"].issue_token()
    # The middle one is of the secret; a root that is another one has a test of its own.
    at = {"first": 6, "middle": 46, "last": len(token) - 1}.get(damage, 0)
    damaged = {
        "cut": token[:-3],
        "twice": token + token,
        "spaced": token[:40] + " " + token[40:],
    }.get(damage, token[:at] + ("B" if token[at] != "B" else "C") + token[at + 1 :])
    code = await mesh.by_token(damaged)
    assert code in {"INVALID_ARGUMENT", "MESH_ID_MISMATCH", "TOKEN_UNKNOWN"}, code
    if damage in {"cut", "twice", "spaced"}:
        assert code == "INVALID_ARGUMENT"


async def test_token_without_an_address_that_answers_says_so(mesh: Mesh) -> None:
    """X cannot reach the addresses that the token names; the text names one of them."""
    key = parse_token(await mesh.gateways["a"].issue_token())
    dead = mesh.sites["x"].config.dial["a"]
    done = await mesh.ctl("x", "join", encode_token(replace(key, addresses=(dead,))))
    assert done.stderr.startswith("error: ADDRESS_UNREACHABLE: "), done.stderr
    assert dead in done.stderr
