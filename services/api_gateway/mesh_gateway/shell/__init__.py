"""Listeners of the gateway and its channels to the other services of the node.

Files:

    app               The REST application, put together
    backends          The channels to the other three services of this node, and whether they answer
    ca_models         Bodies of the REST API that speak of the mesh's CA
    ca_routes         REST: the mesh's certificate authority, and the certificates of this node
    calls             The calls that REST makes to the other services: each with its deadline, the correlation id, and
                      errors as ours
    conversions       Messages of the services as bodies of the REST API
    docs_page         The API page at /docs: Swagger UI from files of this machine, because sites often have no internet
    envelope          What surrounds every HTTP request and WebSocket: correlation id, admission, budgets, counting,
                      last-resort errors
    follow            WebSocket: follow a stream, one JSON message a batch
    join_routes       REST: who may join the mesh, by policy and by token
    known_query       Refuses query parameters that a route does not know
    mesh_routes       REST: life of node and mesh, forwarding
    metrics           What the gateway counts, for `/metrics`
    models            Bodies of the REST API
    openapi           The OpenAPI document: what FastAPI derives, with our error documents instead of its own and the
                      WebSocket told
    proxy             The public gRPC services, passed to the service that implements them without looking into a
                      message
    raft_models       Bodies of the REST API about the groups under streams: their members, leaders, replicas and audits
    raft_routes       REST: the groups under streams: their members and leaders, the replicas of this node, audits
    record_exchanges  Calls that speak of records, made as calls that speak of batches: one exchange for each call under
                      way
    stream_routes     REST: the catalogue of streams, publish and read
    topology_routes   REST: links, paths between nodes, and what would become of them
    weight_routes     REST: weights of the link cost, by traffic class
"""
