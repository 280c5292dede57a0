"""The grammar of names."""

from __future__ import annotations

import uuid

import pytest

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import check_mesh_id, check_node_name, check_stream_name


@pytest.mark.parametrize("name", ["a", "site-1", "0", "a" * 63])
def test_legal_node_names(name: str) -> None:
    assert check_node_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a.b", "a/b", "a" * 64, "a\n", "ä"])
def test_illegal_node_names(name: str) -> None:
    with pytest.raises(MeshError) as caught:
        check_node_name(name)
    assert caught.value.code is ErrorCode.ILLEGAL_NAME


@pytest.mark.parametrize("name", ["demo/lines", "a/b", "x.y/z_1-2", f"{'a' * 63}/{'b' * 63}"])
def test_legal_stream_names(name: str) -> None:
    assert check_stream_name(name) == name


@pytest.mark.parametrize("name", ["", "a", "a/", "/a", "a/b/c", "A/b", ".a/b", "a/-b", f"{'a' * 64}/b", "a/b\n"])
def test_illegal_stream_names(name: str) -> None:
    with pytest.raises(MeshError) as caught:
        check_stream_name(name)
    assert caught.value.code is ErrorCode.ILLEGAL_NAME
    assert "namespace/name" in caught.value.message


def test_a_mesh_id_is_a_uuid_as_python_writes_it() -> None:
    mesh_id = str(uuid.uuid4())
    assert check_mesh_id(mesh_id) == mesh_id
    with pytest.raises(MeshError) as caught:
        check_mesh_id("..")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
