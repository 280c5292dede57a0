"""Decisions of the routing service: pure, synchronous, deterministic.

Files:

    config         Timing of the routing core, with the presets `lan`, `wan` and `test`
    cost           The cost of one link in one direction, term by term
    disjoint       The backup of a path: as disjoint from it as the graph allows, and the cheapest such
    flood_limits   How much a neighbour, or the origin of advertisements, may make this node work
    flooding       Reliable flooding: every advertisement reaches every node over any links that lose, double and
                   reorder messages
    lsa            Link state advertisements as values
    lsa_codec      Bytes of the messages between routing neighbours: protobuf at the edge, values inside
    lsa_signature  Who says it: the Ed25519 signature on each advertisement, made once and checked by every node that
                   takes it
    lsdb           The link-state database: one newest advertisement per member, its age, and the graph that both ends
                   agree on
    origination    When this node advertises itself anew, and under which sequence number
    route_table    Routes to every destination, and versioned differences between two tables
    router         The routing core of one node behind the usual verbs: database, flooding, origination, delay and
                   computation
    spf            Shortest paths: Dijkstra's tree to every destination, and the variant that bounds the number of nodes
                   on a path
    throttle       When to compute routes after a change: the SPF delay of RFC 8405, §§3–5, all three states and six
                   transitions
    view           What routing needs of the MeshView: who the node is, and the names and keys of the members
"""
