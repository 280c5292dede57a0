"""Log transfer to a node that was away: bounded over all groups, read from the log only when the disk answers.

Three nodes over simulated disks; node 1 leads every group, node 3 was away. The leader was restarted, so nothing old is in
its memory, and a read from the log answers only when the test syncs the disk.
"""

from __future__ import annotations

import struct
from collections import Counter

import pytest

from libs.meshraft.tests.messages import Kind, LogEntry, Message, decode, frame, part, unpack
from meshraft import GroupConfig, RaftHost, SimDisk

NODES = (1, 2, 3)
CONFIG = GroupConfig(election_ticks=10, heartbeat_ticks=1)
PERMITTED_BYTES_MAX = 8 << 20
"""Bytes of entries that may be in flight to one node (`log_transfer.rs`)."""
SILENCE_TICKS_MAX = 40
ENTRY = b"x" * (64 << 10)
UNAPPLIED_BYTES_MAX = 256 << 20


class Mesh:
    """Many groups over three hosts."""

    def __init__(self, groups: int) -> None:
        self.groups = range(1, groups + 1)
        self.disks = {node: SimDisk() for node in NODES}
        self.hosts: dict[int, RaftHost] = {}
        self.away: set[int] = set()
        self.slow_disks: set[int] = set()
        self.loses_entries: set[int] = set()
        self.keeps_entries_of: set[int] = set()
        self.keeps_entries_to = 0
        self.applied: Counter[tuple[int, int]] = Counter()
        self.sent_to: Counter[int] = Counter()
        self.appends_to: dict[int, list[int]] = {node: [] for node in NODES}
        for node in NODES:
            self.hosts[node] = RaftHost.simulated(self.disks[node], seed=node)
            for group in self.groups:
                members = [10 * group + other for other in NODES]
                self.hosts[node].create_group(group, 10 * group + node, peers(group), voters=members, config=CONFIG)
        self.lead()

    def lead(self) -> None:
        """Node 1 leads every group."""
        self.settle()
        for _ in range(100):
            led = [group for group in self.groups if self.hosts[1].status(group).role == "leader"]
            if len(led) == len(self.groups):
                return
            for group in set(self.groups) - set(led):
                self.hosts[1].campaign(group)
            self.tick()
        raise AssertionError("node 1 leads not every group")

    def restart(self, node: int) -> None:
        self.disks[node].crash()
        self.hosts[node] = RaftHost.simulated(self.disks[node], seed=node + 100)
        for group in self.groups:
            installed = self.hosts[node].open_group(group, 10 * group + node, peers(group), config=CONFIG)
            self.applied[node, group] = installed.index

    def settle(self) -> None:
        """Everything that can happen without a tick."""
        moved = True
        while moved:
            moved = False
            sent = []
            for node, host in self.hosts.items():
                if host.has_work():
                    sent += self.turn(node)
                    moved = True
                if node not in self.slow_disks and self.disks[node].sync():
                    moved = True
            for source, target, data in sent:
                if not self.away & {source, target}:
                    self.hosts[target].step(source, self.what_arrives(target, data))
                    moved = True

    def what_arrives(self, target: int, data: bytes) -> bytes:
        """The frame without the messages that are lost."""
        if target not in self.loses_entries:
            return data
        kept, position = data[:1], 1
        while position < len(data):
            group, length = struct.unpack_from("!QI", data, position)
            body = data[position + 12 : position + 12 + length]
            lost = any(entry.data and entry.index > self.keeps_entries_to for entry in decode(body).entries)
            if group in self.keeps_entries_of or not lost:
                kept += part(group, body)
            position += 12 + length
        return kept

    def turn(self, node: int) -> list[tuple[int, int, bytes]]:
        pump = self.hosts[node].pump()
        assert not pump.closed, pump.closed
        for entry in pump.committed:
            assert entry.index == self.applied[node, entry.group] + 1 or not self.applied[node, entry.group]
            self.applied[node, entry.group] = entry.index
        for sent in pump.frames:
            for group, message in unpack(sent.data):
                size = sum(len(entry.data) for entry in message.entries)
                self.sent_to[sent.peer] += size
                if size:
                    self.appends_to[sent.peer].append(group)
        return [(node, sent.peer, sent.data) for sent in pump.frames]

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            for host in self.hosts.values():
                host.tick()
            self.settle()

    def publish(self, count: int) -> None:
        """So many entries in every group."""
        for _ in range(count):
            for group in self.groups:
                self.hosts[1].propose(group, ENTRY)
            self.settle()

    def forget_sent(self) -> None:
        self.sent_to.clear()
        self.appends_to = {node: [] for node in NODES}

    def behind(self, node: int) -> int:
        """Groups in which the node has not applied what node 1 has committed."""
        last = {group: self.hosts[1].status(group).commit for group in self.groups}
        return sum(self.hosts[node].status(group).applied < last[group] for group in self.groups)


def peers(group: int) -> dict[int, int]:
    return {10 * group + node: node for node in NODES}


@pytest.fixture
def mesh() -> Mesh:
    """Forty groups with 1 MiB each that node 3 has not; nothing of it in the leader's memory."""
    made = Mesh(40)
    made.away = {3}
    made.publish(16)
    made.restart(1)
    made.lead()
    made.forget_sent()
    return made


def test_the_log_is_read_only_when_the_disk_answers(mesh: Mesh) -> None:
    mesh.slow_disks = {1}
    mesh.away = set()
    mesh.tick(20)
    assert mesh.sent_to[3] == 0
    assert mesh.disks[1].pending() > 0, "nobody reads"
    assert all(mesh.hosts[1].status(group).role == "leader" for group in mesh.groups), "the leader waited for its disk"
    mesh.disks[1].sync()
    mesh.settle()
    assert mesh.sent_to[3] > 0


def test_a_node_that_confirms_nothing_is_sent_no_more_than_the_bound(mesh: Mesh) -> None:
    mesh.away = set()
    mesh.loses_entries = {3}
    mesh.tick(20)
    assert PERMITTED_BYTES_MAX // 2 < mesh.sent_to[3] <= PERMITTED_BYTES_MAX
    (figures,) = [figures for figures in mesh.hosts[1].log_transfers() if figures[0] == 3]
    _, on_their_way, _, waiting = figures
    assert mesh.sent_to[3] <= on_their_way <= 1.01 * mesh.sent_to[3]
    assert waiting > 0


def test_a_node_that_was_away_gets_everything(mesh: Mesh) -> None:
    mesh.away = set()
    mesh.tick(20)
    assert mesh.behind(3) == 0
    assert mesh.sent_to[3] < 1.2 * len(mesh.groups) * 16 * len(ENTRY), "much was sent twice"


def test_groups_get_permits_in_turn(mesh: Mesh) -> None:
    mesh.away = set()
    mesh.tick(20)
    first_of = {group: mesh.appends_to[3].index(group) for group in mesh.groups}
    last_of = {group: len(mesh.appends_to[3]) - mesh.appends_to[3][::-1].index(group) for group in mesh.groups}
    assert max(first_of.values()) < max(last_of.values()) * 0.9, "a group waited until the others were done"


def test_what_never_arrived_counts_as_lost_after_a_while(mesh: Mesh) -> None:
    mesh.away = set()
    mesh.loses_entries = {3}
    mesh.tick(20)
    taken = mesh.sent_to[3]
    mesh.loses_entries = set()
    mesh.tick(SILENCE_TICKS_MAX + 20)
    assert taken > PERMITTED_BYTES_MAX // 2
    assert mesh.behind(3) == 0


def test_what_was_overtaken_counts_as_lost_while_the_node_goes_on_confirming() -> None:
    """Otherwise lost entries would use up the room of their node while another group of it is busy."""
    mesh = Mesh(40)
    mesh.keeps_entries_of = {1}
    mesh.loses_entries = {3}
    mesh.publish(32)
    mesh.restart(1)
    mesh.lead()
    mesh.keeps_entries_to = 8  # the first append arrives, so that many more are sent at once
    for _ in range(20):
        mesh.hosts[1].propose(1, b"news")
        mesh.tick()
    assert mesh.behind(3) == len(mesh.groups) - 1
    mesh.loses_entries = set()
    for _ in range(SILENCE_TICKS_MAX - 5):
        mesh.hosts[1].propose(1, b"news")
        mesh.tick()
    assert mesh.behind(3) == 0


def test_others_do_not_wait_for_a_node_that_is_full(mesh: Mesh) -> None:
    mesh.away = set()
    mesh.loses_entries = {3}
    mesh.tick(20)
    mesh.publish(2)
    assert mesh.behind(2) == 0
    assert mesh.behind(1) == 0


def test_newer_entries_too_wait_for_room() -> None:
    """Nothing has to be read here: all is in the leader's memory, but node 3 is full."""
    mesh = Mesh(100)
    mesh.slow_disks = {3}
    mesh.publish(4)  # at once to node 3, each group within its own window
    at_once = mesh.sent_to[3]
    mesh.tick(SILENCE_TICKS_MAX // 2)
    assert at_once > PERMITTED_BYTES_MAX
    assert mesh.sent_to[3] == at_once, "a node with its full measure was sent more"
    mesh.slow_disks = set()
    mesh.tick(5)
    assert mesh.behind(3) == 0


def test_a_floor_that_passes_a_read_ends_in_a_snapshot(mesh: Mesh) -> None:
    mesh.slow_disks = {1}
    mesh.away = set()
    mesh.tick(3)
    for group in mesh.groups:
        mesh.hosts[1].compact(group, mesh.hosts[1].status(group).applied, b"state")
    mesh.slow_disks = set()
    mesh.tick(60)
    assert mesh.behind(3) == 0
    assert mesh.sent_to[3] == 0


def test_a_leader_that_was_replaced_while_it_read_sends_nothing(mesh: Mesh) -> None:
    mesh.slow_disks = {1}
    mesh.away = set()
    mesh.tick(3)
    for group in mesh.groups:
        mesh.hosts[2].campaign(group)
    mesh.tick(3)
    mesh.slow_disks = set()
    mesh.tick(60)
    assert mesh.behind(3) == 0


def test_a_follower_holds_no_more_than_its_bound_of_what_it_cannot_apply() -> None:
    """Entries that nobody commits, far past the bound: memory stays, and one append a tick still gets through."""
    disk = SimDisk()
    host = RaftHost.simulated(disk, seed=1)
    host.create_group(1, 11, peers(1), voters=[11, 12, 13], config=CONFIG)
    payload = b"y" * (4 << 20)

    def offer(index: int) -> bool:
        """Whether the follower took the entry."""
        append = Message(
            Kind.APPEND,
            11,
            12,
            term=2,
            log_term=1 if index == 2 else 2,
            index=index - 1,
            entries=[LogEntry(index, 2, payload)],
        )
        host.step(2, frame(1, append))
        while host.has_work() or disk.sync():
            host.pump()
        return host.status(1).last_index == index

    index = 2
    while index * len(payload) < 2 * UNAPPLIED_BYTES_MAX and offer(index):
        index += 1
    assert UNAPPLIED_BYTES_MAX <= (index - 1) * len(payload) < UNAPPLIED_BYTES_MAX + 4 * len(payload)
    assert not offer(index)
    host.tick()
    assert offer(index)
    assert not offer(index + 1)
