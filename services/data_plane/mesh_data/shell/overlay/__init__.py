"""Lanes to other nodes: sockets, handshakes, the driver of the overlay core, and what uses it over gRPC.

Files:

    dialler          Opens connections to other nodes and says in one error why one could not be opened
    forwarding_api   The part of MeshDataService that looks at forwarding: ping through the overlay, lanes and routes
    lane_handshakes  Runs the handshake of each connection with the terms of the moment: who is a member, what is known,
                     what the way may be
    lane_session     Runs one connection as a lane: first the handshake, then a reader and a writer until either ends
    lane_socket      How the socket of a lane is bounded: what both sides of a lane give to `meshcommon.frame_socket`
    lane_wire        The connection of a lane behind its handshake: frames as they are, or sealed with the lane's own
                     keys
    listener         The peer listener: accepts WebSocket connections of other nodes and refuses everything else in
                     clear text
    metrics          Prometheus metrics of the overlay, read from the cores at each scrape: the hot path only counts in
                     plain integers
    overlay          The overlay of a running node: drives the overlay core with sockets, a clock and a timer
    overlay_port     What the rest of the data plane may ask of the overlay, as an interface
    overlay_service  OverlayService: how the control plane and routing of the site use the overlay
    refused_lanes    Counts and logs the lanes that did not come up: dials that failed, and what this node refused
    vouches          Asks voters for their word about the membership, on behalf of a node that is behind, and gives this
                     node's own
"""
