"""Data plane of a node: lanes to other nodes, forwarding between them, and the stream groups that live on this node.

Files:

    core/   Decisions of the data plane: pure, synchronous, deterministic
    main    The wiring of the data plane: settings, directory, overlay, stream groups, services, graceful stop
    shell/  Input and output of the data plane: sockets, timers, files and gRPC around the cores
"""
