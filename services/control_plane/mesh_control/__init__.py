"""The control plane of a node: membership, the Mesh Control Group, the stream catalogue, and the supervisor API.

`core/` decides (pure), `shell/` does input and output, `main` wires. Source: architecture §2, §7, §10.
"""
