"""Routing of a mesh node: link-state database, flooding, shortest and disjoint paths, route tables for the data plane.

Map of the package:

- `core/lsa.py`, `core/lsa_codec.py` – advertisements as values, and as bytes between neighbours
- `core/lsa_signature.py`, `core/flood_limits.py` – who says it, and how much one may make this node check
- `core/lsdb.py` – the database: what is newer, ageing, membership, the two-way check
- `core/flooding.py` – reliable hop-by-hop flooding and database exchange
- `core/origination.py` – when this node advertises itself anew
- `core/cost.py`, `core/spf.py`, `core/disjoint.py`, `core/route_table.py` – from the database to routes
- `core/throttle.py` – when to compute
- `core/router.py` – all of it behind the usual verbs
- `shell/` – gRPC to the data plane and from the control plane, disk, mirror into Postgres and Redis

Sources: RFC 2328 (OSPF) §12.1.6, §12.4, §13, §14, §16.1 for sequence numbers, origination, flooding, ageing and SPF;
RFC 8405 for the SPF delay. Deviations are listed in docs/design/routing.md.

Files:

    core/     Decisions of the routing service: pure, synchronous, deterministic
    main      Wiring of the routing process: settings, data directory, core, connection to the data plane, services,
              graceful stop
    settings  Settings of routing
    shell/    Input and output of the routing service
"""
