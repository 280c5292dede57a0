"""RoutingService: what the control plane tells routing. In force at once, then durable, then answered."""

from __future__ import annotations

import asyncio
from typing import Any

from mesh_routing.core.view import View
from mesh_routing.shell.driver import RoutingDriver
from mesh_routing.shell.view_store import ViewStore
from meshapi.routing.v1 import routing_pb2, routing_pb2_grpc
from meshcommon.admin import Readiness
from meshcommon.delegated_keys import DelegatedKeys
from meshcommon.delegation import DelegatedSigner, Use
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import check_mesh_id
from meshcommon.logging import get_logger
from meshcommon.peer_text import printable

_log = get_logger(__name__)


class RoutingService(routing_pb2_grpc.RoutingServiceServicer):
    """Serves Configure and GetDelegatedKey."""

    def __init__(self, driver: RoutingDriver, store: ViewStore, readiness: Readiness, keys: DelegatedKeys) -> None:
        """`keys` are this service's own."""
        self._keys = keys
        self._in_force: routing_pb2.ConfigureRequest | None = None
        self._driver = driver
        self._store = store
        self._readiness = readiness
        # Saves in the order in which the views came into force.
        self._saving = asyncio.Lock()

    def restore(self) -> None:
        """Takes the stored view, at the start. Blocking."""
        stored = self._store.load()
        if stored is None:
            self._warn_outside()
            return
        try:
            self._apply(stored)
        except MeshError as error:
            # Of another version, in which the seed of the identity key lies, or for another key of this service: it goes, and
            # the control plane pushes the view again.
            self._store.forget()
            _log.warning("view_not_usable", code=error.code, reason=error.message)
            self._warn_outside()

    async def GetDelegatedKey(  # noqa: N802 - the name is the proto's
        self, request: routing_pb2.GetDelegatedKeyRequest, context: Any
    ) -> routing_pb2.GetDelegatedKeyResponse:
        """The key of this service, another one every half day. Errors: DATA_DIR_UNWRITABLE."""
        async with self._saving:
            public_key, made_at_s = await asyncio.to_thread(self._keys.offer)
        return routing_pb2.GetDelegatedKeyResponse(public_key=public_key, made_at_s=made_at_s)

    async def Configure(  # noqa: N802 - the name is the proto's
        self, request: routing_pb2.ConfigureRequest, context: Any
    ) -> routing_pb2.ConfigureResponse:
        """See the proto.

        Errors: INVALID_ARGUMENT, also for an id of a mesh that is no UUID and a delegation for another key; STORAGE_FAILED when the view is in force but
        not on disk; it may be sent again.
        """
        # What is not known here is not kept: an earlier version would send the seed of the identity key.
        request.DiscardUnknownFields()
        if request.node_id:
            check_mesh_id(request.view.mesh_id)
        async with self._saving:
            request = self._newest(request)
            if request is not self._in_force:
                self._apply(request)
                try:
                    await asyncio.to_thread(self._store.save, request)
                except OSError as error:
                    raise MeshError(
                        ErrorCode.STORAGE_FAILED,
                        f"Routing cannot store the view ({error.strerror}): check the disk of its data directory.",
                        retryable=True,
                    ) from error
            return routing_pb2.ConfigureResponse(revision=self._driver.view.revision)

    def _newest(self, request: routing_pb2.ConfigureRequest) -> routing_pb2.ConfigureRequest:
        """`request`, or what is in force when that is newer, then with the delegation of `request`.

        A control plane that restarted knows less until it hears from the others; the delegation that it signs is new.
        """
        kept, view = self._in_force, View.from_request(request)
        if kept is None or view.replaces(self._driver.view):
            return request
        updated = routing_pb2.ConfigureRequest()
        updated.CopyFrom(kept)
        if view.mesh_epoch == kept.view.mesh_epoch and request.identity.public_key == kept.identity.public_key:
            updated.identity.CopyFrom(request.identity)
        return kept if updated == kept else updated

    def _apply(self, request: routing_pb2.ConfigureRequest) -> None:
        view = View.from_request(request)
        signer = self._delegated(request, view) if view.is_member else None
        if view.membership != self._driver.view.membership:
            _log.info("membership_changed", node_id=view.node_id, mesh_id=printable(view.mesh_id))
        self._driver.configure(view, signer)
        self._in_force = request
        if view.is_member:
            self._readiness.clear("membership")
        else:
            self._warn_outside()

    def _delegated(self, request: routing_pb2.ConfigureRequest, view: View) -> DelegatedSigner:
        """What signs for this node. Raises MeshError: INVALID_ARGUMENT."""
        identity = request.identity
        signer = DelegatedSigner.from_proto(identity, self._keys.find, Use.LINK_STATES, view.mesh_id, view.mesh_epoch)
        if identity.node_id != view.node_id or view.keys.get(view.node_id, signer.identity_key) != signer.identity_key:
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT,
                f"The identity is not the one of node {view.node_id} in the view: send the one that the mesh knows.",
            )
        return signer

    def _warn_outside(self) -> None:
        self._readiness.warn("membership", "This node is in no mesh yet: seed one or join one.")
