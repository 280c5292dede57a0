"""Input and output of the routing service.

Files:

    driver            The one driver of the routing core: owns its clock and its timer, feeds it, and hands on what
                      comes out
    metrics           Prometheus metrics of routing
    mirror            Copies of the link-state database for readers: tables in Postgres, a hash per link in Redis
    overlay_client    Routing's use of the overlay: messages of neighbours both ways, and the state of the links
    routes_pusher     Keeps the data plane's route table equal to ours: differences, and the whole table when the two
                      have lost each other
    routing_service   RoutingService: what the control plane tells routing
    tables            The tables that routing writes
    topology_service  TopologyService: links and paths by name, out of the link-state database
    view_store        The last view on disk, so that routing restarts while the control plane is down
"""
