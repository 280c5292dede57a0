"""A file system that is really full: publishers are told, nothing fails, and what is deleted makes room again."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path

import httpx
import pytest

from meshapi.common.v1 import view_pb2
from meshapi.data.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshtest.data_plane_client import DataPlane
from meshtest.waiting import eventually
from tests.bench.mesh_nodes import MeshNodes, running_mesh

SIZE_MIB = 400
RECORD = bytes(256 * 1024)
KEPT, BIG = "room/kept", "room/big"


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own, in memory."""
    with tempfile.TemporaryDirectory(prefix="mesh-full-") as directory:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "mesh", directory], check=False)
        if mounted.returncode:
            pytest.skip("this user may not mount a file system")
        yield Path(directory)
        subprocess.run(["umount", directory], check=True)


def fill(path: Path) -> None:
    """Until nothing more fits."""
    with path.open("wb", buffering=0) as file:
        for piece in (1 << 20, 4096):
            with pytest.raises(OSError, match="No space left"):
                write_for_ever(file, bytes(piece))


def write_for_ever(file: FileIO, piece: bytes) -> None:
    while True:
        file.write(piece)


async def are_ready(mesh: MeshNodes) -> bool:
    async with httpx.AsyncClient(timeout=10) as http:
        answers = [await http.get(f"http://{node.admin}/readyz") for node in mesh.nodes.values()]
    return all(answer.status_code == httpx.codes.OK for answer in answers)


async def is_reported(mesh: MeshNodes, stream_id: int, state: int) -> bool:
    for node in mesh.nodes.values():
        call = node.data.WatchGroups(data_pb2.WatchGroupsRequest())
        try:
            response = await call.read()
        finally:
            call.cancel()
        assert isinstance(response, data_pb2.WatchGroupsResponse)
        if not any(report.stream_id == stream_id and report.state == state for report in response.groups):
            return False
    return True


async def test_the_disk_is_full_until_a_stream_is_deleted(small_disk: Path) -> None:
    async with running_mesh(small_disk, is_tls=True) as mesh, DataPlane(mesh.nodes[2].grpc) as gateway:
        await mesh.create([KEPT, BIG])
        await gateway.publish(KEPT, [b"first"])
        refusal: MeshError | None = None
        while refusal is None:
            try:
                await gateway.publish(BIG, [RECORD] * 3)
            except MeshError as error:
                refusal = error
        assert (refusal.code, refusal.retryable) == (ErrorCode.DISK_PRESSURE, True)
        fill(small_disk / "somebody else's")
        with pytest.raises(MeshError) as caught:
            await gateway.publish(KEPT, [b"too much"])
        assert caught.value.code is ErrorCode.DISK_PRESSURE
        assert await are_ready(mesh)
        # What has to be written still can be: the end of a stream, and what makes room.
        await mesh.change(BIG, view_pb2.STREAM_STATE_DELETING)
        await eventually("it is sealed", lambda: is_reported(mesh, 2, data_pb2.GROUP_STATE_SEALED))
        await mesh.change(BIG, view_pb2.STREAM_STATE_DELETING, is_sealed=True)
        await eventually("its data are gone", lambda: is_reported(mesh, 2, data_pb2.GROUP_STATE_DESTROYED))

        async def is_taken() -> bool:
            with suppress(MeshError):
                await gateway.publish(KEPT, [b"second"])
                return True
            return False

        await eventually("there is room by itself", is_taken, timeout_s=60)
        assert await are_ready(mesh)
        values = [record.value async for record in gateway.read(KEPT)]
        assert values == [b"first", b"second"]
