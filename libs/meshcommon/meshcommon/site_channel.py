"""A gRPC channel to another service of the same site, over mutual TLS with certificates that change.

grpc.aio fixes a channel's certificate when the channel is made. So this one makes another when the files have changed:
new calls go over the new one, calls that run stay on the old one, which is closed behind the last of them. No call fails
by a renewal. The other end is checked by the site's authority and the DNS name in its certificate, which is made of
service and node. Leaves out unix sockets (`grpc_client.open_channel`). One event loop only. Source: ADR 0020.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import grpc.aio

from meshcommon.service_certificates import Service, dns_name
from meshcommon.site_files import SiteFiles, SitePair

Options = list[tuple[str, Any]]


@dataclass(eq=False, slots=True)
class _Generation:
    """One real channel, and the calls that run on it."""

    pair: SitePair
    channel: grpc.aio.Channel
    calls: set[Any] = field(default_factory=set)
    methods: dict[object, Any] = field(default_factory=dict)


class SiteChannel(grpc.aio.Channel):  # type: ignore[misc,unused-ignore]
    """Behaves as one channel for ever."""

    def __init__(self, target: str, files: SiteFiles, service: Service, options: Options) -> None:
        """Connects to nothing yet.

        Args:
            target: `host:port`.
            files: This service's own certificate; there must be a pair by the first call.
            service: Which service of this node is expected there.
            options: Of the channel.
        """
        self._target = target
        self._files = files
        self._options = [*options, ("grpc.ssl_target_name_override", dns_name(files.node, service))]
        self._current: _Generation | None = None
        self._old: set[_Generation] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("unary_unary", method, args, kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("unary_stream", method, args, kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("stream_unary", method, args, kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("stream_stream", method, args, kwargs)

    async def close(self, grace: float | None = None) -> None:
        """Ends what runs, after `grace` seconds at most, and all connections."""
        generations = [*self._old, *([self._current] if self._current else [])]
        self._old.clear()
        self._current = None
        await asyncio.gather(*(generation.channel.close(grace) for generation in generations), *self._closing)

    async def __aenter__(self) -> Self:
        """The channel itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes."""
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Of the newest connection."""
        return self._generation().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Of the newest connection."""
        await self._generation().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Returns when the newest connection is up."""
        await self._generation().channel.channel_ready()

    def _method(self, kind: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        key = object()  # one method may be asked for twice, with messages and with bytes

        def call(*request: Any, **options: Any) -> Any:
            generation = self._generation()
            if key not in generation.methods:
                generation.methods[key] = getattr(generation.channel, kind)(method, *args, **kwargs)
            running = generation.methods[key](*request, **options)
            generation.calls.add(running)
            running.add_done_callback(lambda _: self._ended(generation, running))
            return running

        return call

    def _generation(self) -> _Generation:
        pair = self._files.pair
        if pair is None:
            raise RuntimeError("a call before the service has its certificate: await SiteFiles.wait first")
        current = self._current
        if current is not None and current.pair is pair:
            return current
        credentials = grpc.ssl_channel_credentials(pair.authority, pair.key, pair.certificate)
        channel = grpc.aio.secure_channel(self._target, credentials, options=self._options)
        self._current = _Generation(pair, channel)
        if current is not None:
            self._old.add(current)
            self._close_if_idle(current)
        return self._current

    def _ended(self, generation: _Generation, running: Any) -> None:
        generation.calls.discard(running)
        self._close_if_idle(generation)

    def _close_if_idle(self, generation: _Generation) -> None:
        if generation in self._old and not generation.calls:
            self._old.discard(generation)
            task = asyncio.get_running_loop().create_task(generation.channel.close(), name="close of an old channel")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
