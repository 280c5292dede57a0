"""The API gateway of a node: REST, WebSocket and the public gRPC API, in front of control plane, routing and data plane.

It stores nothing and decides nothing about the mesh. `core/` holds its rules (problem documents, admission, records
into batches and back), `shell/` its listeners. Left out until they exist: authentication, rate limits, web console.

Files:

    core/     Rules of the gateway without input or output
    main      Wiring of the gateway process: settings, channels to the backends, listeners, graceful stop
    settings  Settings of the gateway
    shell/    Listeners of the gateway and its channels to the other services of the node
"""
