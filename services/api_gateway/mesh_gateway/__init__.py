"""The API gateway of a node: REST, WebSocket and the public gRPC API, in front of control plane, routing and data plane.

It stores nothing and decides nothing about the mesh. `core/` holds its rules (problem documents, admission, record
bodies), `shell/` its listeners. Left out until they exist: authentication, rate limits, web console.
"""
