"""The mesh's test kit: embedded stores, a node runner, a fault proxy, checkers, and the demo that shows them at work.

Files:

    certificates       Certificates for tests: an authority and what it signs, a certificate that signs itself, and TLS
                       contexts of both sides
    checkers           Checkers of what a stream promised, over plain lists: what was acknowledged and what each member
                       holds
    data_plane_client  A client of one data plane's own gRPC port, for tests that run no gateway: it passes batches, so
                       records are opened here
    delegated          Delegated keys for tests: what signs for a node whose identity key the test has, without a
                       control plane
    demo               `make demo`: three nodes, a stream, a link that dies without a word, a service that is killed –
                       and every byte compared
    demo_input         What the demo publishes when no file is given: the standard library's own source
    effort             How much chance tries: `make test` tries a handful, `make nightly` sets MESH_TEST_EFFORT and
                       tries that many times as much
    fake_overlay       An overlay in memory: several nodes on one event loop, with delay, loss and cuts
    fake_services      gRPC services whose answers a test decides: stand-ins for control plane, routing, data plane or a
                       whole gateway
    gateway_client     A thin asynchronous face of one gateway's gRPC services for tests and the demo: calls raise
                       MeshError
    histories          Checkers of a stream's calls in time: C3, the history is linearizable
    line_stream        Publishes the lines of a file at a steady pace and follows the stream at another node, with times
                       for each record
    load               Publishes messages as fast as they go, in a process of its own, and prints the figures as one
                       JSON line
    ports              Free TCP ports on the loopback, below the range from which the kernel takes ports for outgoing
                       connections
    processes          Child processes that are always ended: by `stop`, by `kill`, or by the kernel when their parent
                       dies
    proxy              A TCP proxy that can go silent, cut, or delay: the faults of a link, made without touching the
                       kernel
    site               One site: a node's four services with its own Postgres and Valkey, each a process
    site_certificates  Certificates of a site's services for tests: an issuer as the control plane has one, and files as
                       it writes them
    sites              `make up` and `make down`: the three nodes as processes that stay
    sockets            Where unix sockets of a site go: beside its data, or in a short directory when the path would be
                       too long
    stores             A site's own Postgres and Valkey as plain processes, from wheels: nothing to install, real
                       servers
    trio               The three nodes of demo, tests and `make up`: a and b listen for peers, c only dials
    waiting            Waiting for a condition of a running system, with a deadline and a message that says what was
                       seen last
"""

from __future__ import annotations

import os

# Before anything imports grpc: we start processes but never go on in a forked one, so its fork handlers only cost lines
# in what a person reads.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
