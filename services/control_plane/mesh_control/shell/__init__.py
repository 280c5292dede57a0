"""Input and output of the control plane; it holds no decision.

Files:

    ca_desk            The mesh's CA as an operator of a member handles it: made, shown, exchanged, or signed by a root
                       of the operator's own
    ca_files           The CA's files of one node: the root's key and certificate where it was made, and the key of a
                       request that is not answered
    ca_keys            The node's wrap key, and the key of the intermediate sealed to it (HPKE)
    ca_service         CaService of the supervisor API
    ca_watch           Keeps the mesh's CA usable: seals its key for new voters, and says in warnings and metrics what
                       ends or is missing
    certificate_files  Hands the services of this site their certificates, as files, and renews them
    changes            Waking up when something changed, without polling and without lost wake-ups
    config_push        Telling a service of this site what is in force, again whenever that or the service changes
    control_recovery   Attested recovery of the control group: an operator names who survives, and this node's replica
                       goes on with them alone
    data_client        What the control plane tells this site's data plane, and what it hears of the local replicas of
                       streams
    gauges             Keeps the gauges of the control group up to date
    group_watch        Carries what the local stream replicas say about groups that formed, ends and members to the MCG
    join_service       Answers a node that asks this member, over a join lane, to be admitted, or whether it still is a
                       member
    leadership         What the leader of the Mesh Control Group does besides committing: its Raft configuration follows
                       the membership
    lifecycle          Seed, join, leave, stop and start: the order of the steps, each of which can be repeated after a
                       crash
    local_node         This node as its control plane holds it: key, place in the mesh, and the replica of the control
                       group
    mcg                This node's replica of the Mesh Control Group: one Raft group in a host of its own, as a state
                       machine for its driver
    mcg_store          Whether the log of the control group on this node, and those of the peers, are what they were
    membership         The node's own place in a mesh, on disk before anything else acts on it (`membership.bin`)
    mesh_service       MeshService of the supervisor API: lifecycle, status and the catalogue of streams
    metrics            Prometheus metrics of the control plane, served on the admin port
    node_certificates  This node's certificate: asked of a member that can open the intermediate, renewed at half its
                       life, and issued to others
    peer_calls         Requests between control planes, over the overlay or over the lane of a node that is not yet a
                       member
    projection         Writes what the MCG decided to the node's Postgres, for queries
    proposer           Getting a change committed from any node: find the leader, ask it, and ask again until it is
                       certain
    renewal            Makes this node another member of the control group when its log forgot something: asks for a new
                       id, begins blank
    routing_client     What the control plane tells this site's routing: who this node is, and the view
    schema             Brings the node's database to the newest schema, or says that it is newer than this version
    settings           Settings of the control plane: section `[control]`, variables `MESH_CONTROL_*`
    site_issuer        The site issuer: the key that signs the certificates of this site's services, and of no others
    site_tls           What the control plane has of its site's TLS, put together: the issuer, the files that it writes,
                       and its own of them
    standing_check     Tells a node that was forgotten while it was away that it is no member any more
    store_watch        Whether this site's Postgres and Redis answer, told as warnings of the node's status
    tables             Tables of the projection, as the migrations make them: revision 0001
    token_desk         Join tokens and the join policy, as an operator of any member handles them
    version_watch      Says in `/readyz` and in the status that the mesh has gone beyond this node's software
"""
