"""`make up` and `make down`: data survive in between, and a second `up` changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from meshtest.gateway_client import Gateway
from meshtest.waiting import eventually


def sites(directory: Path, action: str) -> str:
    command = [sys.executable, "-m", "meshtest.sites", action]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def gateway(directory: Path) -> str:
    line = next(text for text in sites(directory, "up").splitlines() if text.strip().startswith("node c"))
    return line.split("gRPC")[1].split()[0]


async def test_data_survive_down_and_up(tmp_path: Path) -> None:
    try:
        output = sites(tmp_path, "up")
        assert "/docs" in output
        assert "running already" in sites(tmp_path, "up")
        async with Gateway(gateway(tmp_path)) as client:
            await client.create_stream("keep/this", ["a", "b", "c"])
            await eventually("c serves the stream", lambda: client.describe("keep/this"))
            await client.publish("keep/this", [b"one", b"two"])
        assert "stopped" in sites(tmp_path, "down")
        assert "nothing runs" in sites(tmp_path, "down")
        sites(tmp_path, "up")
        async with Gateway(gateway(tmp_path)) as client:

            async def is_whole() -> bool:
                return [record.value async for record in client.read("keep/this")] == [b"one", b"two"]

            await eventually("c serves both records", is_whole)
    finally:
        sites(tmp_path, "down")
