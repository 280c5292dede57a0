"""REST: links, paths between nodes, and what would become of them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from mesh_gateway.shell.calls import Calls
from mesh_gateway.shell.weight_routes import TrafficClass, class_value
from meshapi.supervisor.v1 import topology_pb2


class Link(BaseModel):
    """One direction of a link, as its origin advertises it. What is not measured is null."""

    model_config = ConfigDict(populate_by_name=True)

    from_: str = Field(alias="from", description="Advertising node.")
    to: str = Field(description="Neighbour.")
    latency_us: int = Field(description="Latency, microseconds.")
    jitter_us: int = Field(description="Jitter, microseconds.")
    loss_ppm: int | None = Field(description="Loss, parts per million.")
    bandwidth_kbit: int | None = Field(description="What it can carry, kbit/s.")
    utilisation_permille: int | None = Field(description="How much of that is in use, thousandths.")
    admin_cost: int = Field(description="Administrative cost, microseconds-equivalent.")
    cost: float = Field(description="Cost for the class CONTROL, microseconds-equivalent.")
    is_two_way: bool = Field(description="Whether both ends advertise it: only then is it used.")


class Protection(BaseModel):
    """How well the pairs of nodes are connected."""

    pairs: int = Field(description="Pairs of nodes in all.")
    connected: int = Field(description="Pairs with a path.")
    protected: int = Field(description="Pairs with two paths that share no link.")


class Links(BaseModel):
    """The link-state database."""

    links: list[Link] = Field(description="By (from, to).")
    topology_version: int = Field(description="Raised by every change of the database.")
    protection: Protection = Field(description="As of the last computation of routes.")


class CostTerms(BaseModel):
    """What a path costs, by reason; microseconds-equivalent."""

    latency: int = Field(description="Latency.")
    jitter: int = Field(description="Jitter.")
    bandwidth: int = Field(description="Narrowness.")
    utilisation: int = Field(description="Use.")
    loss: int = Field(description="Loss.")
    hops: int = Field(description="Number of links.")
    admin: int = Field(description="Administrative cost.")


class Path(BaseModel):
    """One path."""

    nodes: list[str] = Field(description="Names, both ends included.")
    cost: float = Field(description="Cost in microseconds-equivalent.")
    terms: CostTerms = Field(description="The cost by reason.")


class Paths(BaseModel):
    """Paths between two nodes."""

    paths: list[Path] = Field(description="Best first.")


class Effect(BaseModel):
    """What an event would change."""

    before: Protection = Field(description="Now, without the pairs of a node that stops.")
    after: Protection = Field(description="After the event.")
    lost: list[tuple[str, str]] = Field(description="Pairs that would lose their last path; the first 1,000.")
    lost_count: int = Field(description="How many there are.")
    unprotected: list[tuple[str, str]] = Field(
        description="Pairs that would keep a path and lose their protection; the first 1,000."
    )
    unprotected_count: int = Field(description="How many there are.")


NodeQuery = Annotated[str, Query(description="Name of a node.", min_length=1)]


def topology_router(calls: Calls) -> APIRouter:
    """Routes about links and paths, answered by routing."""
    router = APIRouter(prefix="/v1", tags=["topology"])

    @router.get("/links", summary="Links")
    async def list_links() -> Links:
        """All links of the link-state database, one entry for each direction."""
        answer = await calls.links()
        return Links(
            links=[_link(link) for link in answer.links],
            topology_version=answer.topology_version,
            protection=_protection(answer.protection),
        )

    @router.get("/paths", summary="Paths between two nodes")
    async def list_paths(
        source: Annotated[str, Query(alias="from", description="Name of the first node.", min_length=1)],
        target: Annotated[str, Query(alias="to", description="Name of the last node.", min_length=1)],
        count: Annotated[
            int, Query(description="So many of the shortest; 0: the best and its backup.", ge=0, le=16)
        ] = 0,
        traffic_class: Annotated[TrafficClass, Query(alias="class", description="Whose weights count.")] = "CONTROL",
        disjoint: Annotated[
            Literal["LINK", "NODE"] | None,
            Query(description="Instead: the two that share no link, or no node, and cost least together."),
        ] = None,
    ) -> Paths:
        """Paths between two nodes, best first. Errors: UNKNOWN_NODE, NO_PATH."""
        answer = await calls.paths(source, target, count, class_value(traffic_class), disjoint)
        return Paths(
            paths=[
                Path(
                    nodes=list(path.nodes),
                    cost=path.cost,
                    terms=CostTerms(**{name: getattr(path.terms, name) for name in CostTerms.model_fields}),
                )
                for path in answer.paths
            ]
        )

    @router.get("/whatif/cut", summary="If a link were cut")
    async def whatif_cut(one: NodeQuery, other: NodeQuery) -> Effect:
        """Pairs that would suffer if the link between two nodes were cut. Errors: UNKNOWN_NODE, INVALID_ARGUMENT."""
        ends = topology_pb2.LinkEnds(one=one, other=other)
        return _effect(await calls.what_if(topology_pb2.WhatIfRequest(cut=ends)))

    @router.get("/whatif/stop", summary="If a node stopped")
    async def whatif_stop(node: NodeQuery) -> Effect:
        """Pairs that would suffer if a node stopped. Errors: UNKNOWN_NODE."""
        return _effect(await calls.what_if(topology_pb2.WhatIfRequest(stop=node)))

    return router


def _link(link: topology_pb2.Link) -> Link:
    return Link(
        from_=getattr(link, "from"),
        to=link.to,
        latency_us=link.latency_us,
        jitter_us=link.jitter_us,
        loss_ppm=link.loss_ppm if link.is_loss_measured else None,
        bandwidth_kbit=link.bandwidth_kbit if link.HasField("bandwidth_kbit") else None,
        utilisation_permille=link.utilisation_permille if link.HasField("utilisation_permille") else None,
        admin_cost=link.admin_cost,
        cost=link.cost,
        is_two_way=link.is_two_way,
    )


def _protection(counts: topology_pb2.Protection) -> Protection:
    return Protection(pairs=counts.pairs, connected=counts.connected, protected=counts.protected)


def _effect(answer: topology_pb2.WhatIfResponse) -> Effect:
    return Effect(
        before=_protection(answer.before),
        after=_protection(answer.after),
        lost=[(pair.one, pair.other) for pair in answer.lost],
        lost_count=answer.lost_count,
        unprotected=[(pair.one, pair.other) for pair in answer.unprotected],
        unprotected_count=answer.unprotected_count,
    )
