"""Publishes to and reads from streams of the mesh, in volume, over the client listener of a site's data plane.

    async with MeshClient("ws://127.0.0.1:7303") as client:
        async with client.producer("shop/orders") as producer:
            receipt = await producer.send(b"one order")
            print(await receipt)  # its offset, once a quorum of disks has it
        async for record in client.read("shop/orders"):
            print(record.offset, record.value)

A file map: `gathering` (records into batches) and `window` (batches that are not answered) decide and do no input or
output; `producer`, `reading`, `connection` and `client` do; `blocking` has the same calls for programs without an event
loop.
Leaves out: what an operator does (`meshctl`, REST). Source: architecture §2, §8.

Files:

    backoff     Waiting between tries: doubled each time up to a cap, with full jitter so that clients do not come back
                together
    blocking    The client for programs without an event loop: the same calls, each of which waits
    client      The way in: one connection to a data plane, made again when it is lost, and what can be done over it
    connection  One WebSocket to a data plane: messages out in as few frames as possible, answers to whoever asked
    gathering   Gathers records into batches by size, count and time
    producer    Publishes records to one stream: gathered into batches, several in flight, in order, each exactly once
    reading     Reads one stream in order, across lost connections: batches under byte credit, opened here
"""

from __future__ import annotations

from meshclient.client import MeshClient
from meshclient.gathering import Batching
from meshclient.producer import Producer, Receipt
from meshclient.reading import Reader, Record
from meshcommon.errors import ErrorCode, MeshError
from meshwire.batch import Codec
from meshwire.client import StreamInfo

__all__ = [
    "Batching",
    "Codec",
    "ErrorCode",
    "MeshClient",
    "MeshError",
    "Producer",
    "Reader",
    "Receipt",
    "Record",
    "StreamInfo",
]
