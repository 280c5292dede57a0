"""Errors about streams: what they tell the caller to do next."""

from __future__ import annotations

from data_plane_testing.stream_cluster import NAME, STREAM, make_view
from mesh_data.core.view import StreamPhase
from mesh_data.shell.streams.streams_asking import no_quorum
from meshcommon.errors import ErrorCode


def test_no_quorum_names_the_commands_that_explain_and_end_it() -> None:
    error = no_quorum(make_view(2, StreamPhase.ACTIVE).streams[STREAM], 10)
    assert (error.code, error.retryable) == (ErrorCode.NO_QUORUM, True)
    assert error.message == (
        f"No leader of {NAME} answered within 10 s: a majority of its members has to be up and reachable; try again. "
        "`meshctl raft ls` says whom the group waits for; when a member is lost for good, `meshctl raft recover` is the "
        "way out."
    )
