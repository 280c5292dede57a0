"""Publishes to and reads from streams of the mesh, in volume, over the client listener of a site's data plane.

    async with MeshClient("ws://127.0.0.1:7303") as client:
        async with client.producer("shop/orders") as producer:
            receipt = await producer.send(b"one order")
            print(await receipt)  # its offset, once a quorum of disks has it
        async for record in client.read("shop/orders"):
            print(record.offset, record.value)

A file map: `gathering` (records into batches) and `window` (batches that are not answered) decide and do no input or
output; `producer`, `reading`, `connection` and `client` do; `blocking` is the same for programs without an event loop.
Leaves out: what an operator does (`meshctl`, REST). Source: architecture §2, §8.
"""

from __future__ import annotations

from meshclient.client import MeshClient
from meshclient.gathering import Batching
from meshclient.producer import Producer, Receipt
from meshclient.reading import Record
from meshcommon.errors import ErrorCode, MeshError
from meshwire.client import StreamInfo

__all__ = [
    "Batching",
    "ErrorCode",
    "MeshClient",
    "MeshError",
    "Producer",
    "Receipt",
    "Record",
    "StreamInfo",
]
