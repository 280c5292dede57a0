"""Commands about the weights of the link cost: what they ask and print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from meshapi.common.v1 import weights_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.cost_weights import DEFAULTS, weights_message, write_weights
from meshwire.packet import TrafficClass

if TYPE_CHECKING:
    from meshtest.fake_services import FakeServer
    from tests.conftest import Program


async def test_weights_are_shown_by_class(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("GetCostWeights", mesh_pb2.GetCostWeightsResponse(classes=write_weights(DEFAULTS)))
    lines = (await meshctl.run("weights", "show")).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["control", "priority", "bulk"]
    assert "1000000 us" in lines[4]
    body = json.loads((await meshctl.run("weights", "show", "--json")).stdout)
    assert body["classes"][0]["weights"]["hop_us"] == 2_000


async def test_only_what_is_named_is_changed(gateway: FakeServer, meshctl: Program) -> None:
    weights = weights_message(DEFAULTS[TrafficClass.BULK])
    gateway.answer("SetCostWeights", mesh_pb2.SetCostWeightsResponse(weights=weights))
    said = (await meshctl.run("weights", "set", "bulk", "--hop-us", "5")).stdout
    assert said.startswith("bulk: latency_permille 1000")
    change = weights_pb2.ClassWeights(
        traffic_class=weights_pb2.TRAFFIC_CLASS_BULK, weights=weights_pb2.CostWeights(hop_us=5)
    )
    assert gateway.asked[-1].request == mesh_pb2.SetCostWeightsRequest(change=change)
    await meshctl.run("weights", "set", "bulk", "--reset")
    change.weights.Clear()
    assert gateway.asked[-1].request == mesh_pb2.SetCostWeightsRequest(change=change, reset=True)


async def test_change_without_a_weight_or_beyond_its_bounds_is_not_sent(gateway: FakeServer, meshctl: Program) -> None:
    for arguments in (("bulk",), ("bulk", "--hop-us", "0"), ("bulk", "--latency-permille", "100001"), ("best",)):
        result = await meshctl.run("weights", "set", *arguments)
        assert result.exit_code == 2
    assert not gateway.asked
