"""Input and output of the data plane: sockets, timers, files and gRPC around the cores.

Files:

    clients/           Connections of the site's own applications over the client WebSocket
    data_service       DataPlaneService: identity, view and routes from the site's control plane and routing, and group
                       reports back
    groups/            Stream groups of this node: the Raft host's driver, replicas, their members, checkpoints and
                       disks
    latency_histogram  A Prometheus histogram whose observation costs a bisection and an addition
    overlay/           Lanes to other nodes: sockets, handshakes, the driver of the overlay core, and what uses it over
                       gRPC
    settings           Settings of the data plane: section `[data]`, variables `MESH_DATA_*`
    state_store        What the data plane keeps on disk so that it can start alone: identity and view, and the route
                       table
    stream_errors      Errors about a stream that several parts of the data plane give
    streams/           Publishing, reading and looking at streams, wherever their leaders are: calls, requests of other
                       nodes, gRPC
    streams_metrics    Prometheus metrics of stream groups, publishing and reading
"""
