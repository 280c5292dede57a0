"""Which stream is meant: a name and an id of two lives of a stream never mean the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data_plane_testing.stream_cluster import NAME, STREAM, make_view
from mesh_data.core.stream_lookup import stream_named, stream_of_id
from mesh_data.core.view import StreamPhase, View
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import StreamId

LATER = StreamId(7)


def view_of(state: StreamPhase, *, has_successor: bool = False) -> View:
    view = make_view(state=state)
    if not has_successor:
        return view
    later = replace(view.streams[STREAM], stream_id=LATER, state=StreamPhase.ACTIVE)
    return replace(view, streams={LATER: later}, next_stream_id=8)


def code_of(error: pytest.ExceptionInfo[MeshError]) -> ErrorCode:
    return error.value.code


def test_a_live_stream_is_found_by_name_and_by_id() -> None:
    view = view_of(StreamPhase.ACTIVE)
    assert stream_named(view, NAME) is stream_named(view, NAME, STREAM) is stream_of_id(view, STREAM)


@pytest.mark.parametrize("name", ["demo/other", NAME])
def test_a_stream_that_is_being_deleted_is_there_no_more(name: str) -> None:
    view = view_of(StreamPhase.DELETING)
    with pytest.raises(MeshError) as missing:
        stream_named(view, name)
    assert code_of(missing) is ErrorCode.STREAM_NOT_FOUND
    with pytest.raises(MeshError) as missing:
        stream_of_id(view, STREAM)
    assert code_of(missing) is ErrorCode.STREAM_NOT_FOUND
    assert missing.value.details == {"stream": NAME}


def test_the_next_life_of_a_name_is_another_stream() -> None:
    view = view_of(StreamPhase.ACTIVE, has_successor=True)
    with pytest.raises(MeshError) as other:
        stream_named(view, NAME, STREAM)
    assert code_of(other) is ErrorCode.STREAM_REPLACED
    with pytest.raises(MeshError) as other:
        stream_of_id(view, STREAM, NAME)
    assert code_of(other) is ErrorCode.STREAM_REPLACED
    with pytest.raises(MeshError) as missing:
        stream_of_id(view, STREAM)
    assert code_of(missing) is ErrorCode.STREAM_NOT_FOUND, "without its name nothing replaces it"


def test_a_name_that_is_none_is_refused_before_it_is_looked_up() -> None:
    with pytest.raises(MeshError) as illegal:
        stream_named(view_of(StreamPhase.ACTIVE), "No Name")
    assert code_of(illegal) is ErrorCode.ILLEGAL_NAME
