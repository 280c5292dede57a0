"""The control plane of a node: membership, the Mesh Control Group, the stream catalogue, and the supervisor API.

`core/` decides (pure), `shell/` does input and output, `main` wires. Source: architecture §2, §7, §10.

Files:

    core/   Decisions of the control plane: no sockets, files, clocks, threads or randomness of its own
    main    The wiring of the control plane: what is made, what it is given, and in which order it stops
    shell/  Input and output of the control plane
"""
