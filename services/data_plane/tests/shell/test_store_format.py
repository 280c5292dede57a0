"""A data directory of the version before: refused at the start with what to do, and nothing in it is touched.

`stores/format_1.tar.gz` was written by that version: one node's directory with a stream of five records.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import LaterEntry, StreamState
from mesh_data.main import open_data_dir
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import StreamId

STORE = Path(__file__).parents[1] / "stores" / "format_1.tar.gz"
ENTRY = bytes.fromhex(
    # An entry of that store: kind and stamp, then a batch of format 1 with three records.
    "01000001a227dff45a4d4201005daa265c0000000000000000000000000000000000000000000000030000002affff000000"
    "087265636f72642030ffff000000087265636f72642031ffff000000087265636f72642032"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with tarfile.open(STORE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "data"


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_a_store_of_the_version_before_is_refused_and_left_as_it_is(data: Path) -> None:
    before = contents(data)
    assert any(name.endswith(".raftlog") for name in before)
    for _ in range(2):
        with pytest.raises(MeshError) as caught:
            open_data_dir(data, "a")
        error = caught.value
        assert (error.code, error.details["format_version"]) == (ErrorCode.STORE_FORMAT_OLD, "1")
        assert error.mapping.exit_status == 87
        assert "start the version before" in error.message
        assert f"remove {error.details['path']}" in error.message
    assert contents(data) == before


def test_once_its_log_is_removed_the_directory_is_taken_over(data: Path) -> None:
    with pytest.raises(MeshError) as caught:
        open_data_dir(data, "a")
    for file in Path(caught.value.details["path"]).iterdir():
        file.unlink()
    directory = open_data_dir(data, "a")
    directory.close()
    assert (directory.marker.format_version, directory.marker.node_id) == (2, 1)


def test_a_member_that_meets_such_an_entry_all_the_same_stands_still() -> None:
    """A log that came by another way, copied by hand for instance: no member may pass over what others count."""
    state = StreamState(StreamConfig(StreamId(1), retained_bytes_max=1 << 20, checkpoint_bytes=1 << 20))
    before = state.snapshot()
    with pytest.raises(LaterEntry, match="batch format 1 is not 2"):
        state.apply(2, ENTRY)
    assert state.snapshot() == before
