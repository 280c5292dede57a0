"""REST: weights of the link cost, by traffic class."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from mesh_gateway.shell.calls import Calls
from mesh_gateway.shell.models import Body
from meshapi.common.v1 import weights_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.cost_weights import COST_US_MAX, PERMILLE_MAX

TrafficClass = Literal["CONTROL", "PRIORITY", "BULK"]
_PREFIX: Final = "TRAFFIC_CLASS_"
_Permille = Annotated[int, Field(ge=0, le=PERMILLE_MAX)]
_Cost = Annotated[int, Field(ge=0, le=COST_US_MAX)]


class CostWeights(BaseModel):
    """Weights of one traffic class; costs are in microsecond-equivalents."""

    latency_permille: int = Field(description="A microsecond of latency, in thousandths.")
    jitter_permille: int = Field(description="A microsecond of jitter, in thousandths.")
    bandwidth_us: int = Field(description="A link of 1 Mbit/s; one of n Mbit/s costs an nth of it.")
    utilisation_us: int = Field(description="A link that is fully used.")
    loss_us_per_percent: int = Field(description="1 % of loss.")
    hop_us: int = Field(description="Each hop.")


class WeightsByClass(BaseModel):
    """Weights in force."""

    classes: dict[TrafficClass, CostWeights] = Field(description="By traffic class.")


class WeightsBody(Body):
    """Weights that change; what is left out stays, or goes back to its default with `reset`."""

    latency_permille: _Permille | None = Field(default=None, description="A microsecond of latency, in thousandths.")
    jitter_permille: _Permille | None = Field(default=None, description="A microsecond of jitter, in thousandths.")
    bandwidth_us: _Cost | None = Field(default=None, description="A link of 1 Mbit/s.")
    utilisation_us: _Cost | None = Field(default=None, description="A link that is fully used.")
    loss_us_per_percent: _Cost | None = Field(default=None, description="1 % of loss.")
    hop_us: int | None = Field(default=None, ge=1, le=COST_US_MAX, description="Each hop.")
    reset: bool = Field(default=False, description="Whether the weights that are left out go back to their defaults.")


def weight_router(calls: Calls) -> APIRouter:
    """Routes of the weights, answered by the control plane."""
    router = APIRouter(prefix="/v1", tags=["mesh"])

    @router.get("/mesh/weights", summary="Weights of the link cost")
    async def get_weights() -> WeightsByClass:
        """Weights of the link cost, of every traffic class. Errors: NOT_A_MEMBER."""
        answer = await calls.cost_weights()
        return WeightsByClass.model_validate(
            {"classes": {_name(item.traffic_class): _model(item.weights) for item in answer.classes}}
        )

    @router.patch("/mesh/weights/{traffic_class}", summary="Change weights of the link cost")
    async def set_weights(
        traffic_class: Annotated[TrafficClass, Path(description="Traffic class.")], body: WeightsBody
    ) -> CostWeights:
        """Changes weights of one class for the whole mesh; every node computes its routes anew.

        Errors: NOT_A_MEMBER, INVALID_ARGUMENT, MESH_CRITICAL, MESH_VERSION_TOO_LOW, NO_QUORUM.
        """
        change = weights_pb2.ClassWeights(
            traffic_class=class_value(traffic_class),
            weights=weights_pb2.CostWeights(**body.model_dump(exclude={"reset"}, exclude_none=True)),
        )
        answer = await calls.set_cost_weights(mesh_pb2.SetCostWeightsRequest(change=change, reset=body.reset))
        return _model(answer.weights)

    return router


def class_value(name: TrafficClass) -> weights_pb2.TrafficClass.ValueType:
    """The traffic class of a path or query."""
    return weights_pb2.TrafficClass.Value(_PREFIX + name)


def _name(value: weights_pb2.TrafficClass.ValueType) -> str:
    return weights_pb2.TrafficClass.Name(value).removeprefix(_PREFIX)


def _model(weights: weights_pb2.CostWeights) -> CostWeights:
    return CostWeights(**{name: getattr(weights, name) for name in CostWeights.model_fields})
