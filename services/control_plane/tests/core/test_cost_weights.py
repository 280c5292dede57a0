"""Weights of the link cost in the replicated state: bounds, versions, snapshots, and what a change leaves alone."""

from __future__ import annotations

from typing import Any

import pytest

from control_plane_testing.mcg_commands import accept, found, refusal
from mesh_control.core.mcg_state import McgState
from mesh_control.core.versions import JOIN_VERSION, WEIGHTS_VERSION, check_proposable, version_of
from meshapi.common.v1 import weights_pb2
from meshapi.control.v1 import mcg_pb2
from meshcommon.cost_weights import COST_US_MAX, DEFAULTS, PERMILLE_MAX, CostWeights, read_weights
from meshcommon.errors import ErrorCode, MeshError
from meshwire.packet import TrafficClass

BULK = weights_pb2.TRAFFIC_CLASS_BULK


def change(traffic_class: int = BULK, *, reset: bool = False, **weights: int) -> mcg_pb2.Command:
    values: Any = {"traffic_class": traffic_class, "weights": weights_pb2.CostWeights(**weights)}
    return mcg_pb2.Command(
        set_cost_weights=mcg_pb2.SetCostWeights(change=weights_pb2.ClassWeights(**values), reset=reset)
    )


def in_force(state: McgState) -> dict[TrafficClass, CostWeights]:
    return {**DEFAULTS, **read_weights(state.view().cost_weights)}


@pytest.fixture
def state() -> McgState:
    state = McgState()
    accept(state, found())
    return state


def test_mesh_begins_with_the_default_weights(state: McgState) -> None:
    assert in_force(state) == DEFAULTS
    assert not state.view().cost_weights


def test_change_names_what_changes_and_leaves_the_rest(state: McgState) -> None:
    accept(state, change(hop_us=9, bandwidth_us=0))
    accept(state, change(hop_us=11))
    default = DEFAULTS[TrafficClass.BULK]
    expected = CostWeights(
        default.latency_permille,
        default.jitter_permille,
        0,
        default.utilisation_us,
        default.loss_us_per_percent,
        11,
    )
    assert in_force(state) == {**DEFAULTS, TrafficClass.BULK: expected}
    before = state.revision
    accept(state, change(hop_us=11))
    assert state.revision == before


def test_reset_goes_back_to_the_defaults_of_what_is_not_named(state: McgState) -> None:
    accept(state, change(hop_us=9, loss_us_per_percent=0))
    accept(state, change(reset=True, hop_us=7))
    assert in_force(state)[TrafficClass.BULK].hop_us == 7
    assert in_force(state)[TrafficClass.BULK].loss_us_per_percent == 20_000
    accept(state, change(reset=True))
    assert not state.view().cost_weights


def test_weights_survive_a_snapshot_and_the_digests_agree(state: McgState) -> None:
    accept(state, change(hop_us=9))
    restored = McgState()
    restored.restore(state.snapshot())
    assert in_force(restored) == in_force(state)
    assert restored.digest() == state.digest()


@pytest.mark.parametrize(
    "command",
    [
        change(0, hop_us=1),
        change(4, hop_us=1),
        change(hop_us=0),
        change(hop_us=COST_US_MAX + 1),
        change(latency_permille=PERMILLE_MAX + 1),
        change(bandwidth_us=2**32 - 1),
    ],
    ids=range(6),
)
def test_weight_out_of_bounds_is_refused_and_changes_nothing(state: McgState, command: mcg_pb2.Command) -> None:
    before = state.view()
    assert refusal(state, command).code is ErrorCode.INVALID_ARGUMENT
    assert state.view() == before


def test_change_needs_the_mesh_version_that_knows_it() -> None:
    assert version_of(change(hop_us=1)) == WEIGHTS_VERSION
    with pytest.raises(MeshError) as caught:
        check_proposable(change(hop_us=1), JOIN_VERSION, WEIGHTS_VERSION)
    assert caught.value.code is ErrorCode.MESH_VERSION_TOO_LOW


def test_snapshot_with_weights_that_nobody_may_set_is_refused(state: McgState) -> None:
    snapshot = mcg_pb2.McgSnapshot.FromString(state.snapshot())
    snapshot.view.cost_weights.add(traffic_class=BULK).weights.hop_us = 0
    with pytest.raises(MeshError) as caught:
        McgState().restore(snapshot.SerializeToString())
    assert caught.value.code is ErrorCode.STORAGE_FAILED
