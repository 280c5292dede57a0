"""Decisions of the routing service: pure, synchronous, deterministic.

Files:

    bhandari        The cheapest pair of disjoint paths between two nodes, by link or by node
    config          Timing of the routing core, with the presets `lan`, `wan` and `test`
    cost            The cost of one link in one direction, term by term
    disjoint        The backup of a path: as disjoint from it as the graph allows, and the cheapest such
    flood_limits    How much a neighbour, or the origin of advertisements, may make this node work
    flooding        Reliable flooding: every advertisement reaches every node over any links that lose, double and
                    reorder messages
    k_paths         The k shortest loopless paths between two nodes
    lsa             Link state advertisements as values
    lsa_codec       Bytes of the messages between routing neighbours: protobuf at the edge, values inside
    lsa_signature   Who says it: the Ed25519 signature on each advertisement, made once and checked by every node that
                    takes it
    lsdb            The link-state database: one newest advertisement per member, its age, and the graph that both ends
                    agree on
    origination     When this node advertises itself anew, and under which sequence number
    path_cache      The k shortest paths of pairs that were asked for, kept as long as no change can matter to them
    protection      Which pairs of nodes have a path, which are protected by a second one, and what an event would
                    change
    route_table     Routes to every destination, and versioned differences between two tables
    route_work      One computation of all routes, in steps that are short enough for the event loop of a large mesh
    router          The routing core of one node behind the usual verbs: database, flooding, origination, delay and
                    computation
    spf             Shortest paths: Dijkstra's tree to every destination, and the variant that bounds the number of
                    nodes on a path
    throttle        When to compute routes after a change: the SPF delay of RFC 8405, §§3–5, all three states and six
                    transitions
    topology_graph  The graph of one traffic class, kept up to date link by link, and a journal of what changed
    view            What routing needs of the MeshView: who the node is, and the names and keys of the members
"""
