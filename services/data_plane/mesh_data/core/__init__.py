"""Decisions of the data plane: pure, synchronous, deterministic; time and randomness are passed in.

Files:

    chain_audit         Remembers hash chains of a replica, and compares those of a stream's members at one log index
    class_queues        Packets that wait in front of a link, by class, with strict priority and a bound in bytes for
                        each class (I6)
    dial_policy         Who dials whom, and when
    disk_room           Whether the disks of a stream's members have room for more records
    echo                Echo: the overlay's ping
    forwarder           Forwarding: the source picks the whole path, a relay looks only at the next hop and may repair a
                        path once
    frame_seal          Frames sealed with a lane's own keys, for a lane whose TLS somebody in between ends
    group_leader        What a member does for its stream's group beyond committing records, most of it as leader, and
                        what it remembers for that
    group_steps         The next single step from a stream group's Raft configuration to the members that the catalogue
                        names
    handshake           The lane handshake: agrees on a version, proves both nodes' keys and agrees on fresh ones,
                        without any I/O of its own
    held_packets        Packets that wait for the keys of their destination: a little, for a moment, so that a first
                        vote is not lost
    identity            How this node makes statements and checks those of others: by its signer, and by the keys that
                        the MeshView names
    join_lane           A lane on which one side is no member: only the join protocol, only to this neighbour, at a
                        bounded rate
    join_limits         Limits for nodes that are not yet members: how many lanes at once, how often a new one, how many
                        packets on it
    key_agreement       Agreement on a secret by X25519, and keys derived from it by HKDF-SHA256
    key_message         Messages of protocol KEYS: ask for a node's boot key, and the signed answer
    lane                One lane after its handshake: heartbeats, round trip estimate, silence detection, goodbye
    lane_limits         How many lanes of members may be open at once, from one of them and in all
    leader_hints        Which node is asked as a stream's leader, or as a member: by the local replica, by hints, else
                        each member in its turn
    link                The virtual link to one neighbour: it owns its lanes and the bounded queues in front of them,
                        and says what goes next on which
    membership_desk     What this node knows of the membership: by its control plane, or shown by another node that
                        knows a newer one
    message_ids         Message ids of this node's packets: they rise by one, and whether one was given out a moment ago
                        is known
    offset_index        Where in the log an offset is: a sparse map from offsets to log indexes, and the log indexes
                        that hold no records
    open_lane           A lane that is open, with what waits for it alone: its beats and echoes, its bye, on a join lane
                        also packets
    overlay             The overlay of one node without its sockets: links, join lanes and forwarding put together
    packet_keys         Keys between this node and every other: agrees on sessions and finds the one that seals or opens
                        a packet
    packet_session      One session between two nodes: the keys under which packets between their present boots are
                        sealed, and replay windows
    path_choice         Path choice: which way a packet takes, from the route table, the links that are up and the links
                        that others named broken
    path_error          The path error: tells a packet's source which link on its path is down, signed by the near end
                        of that link
    producers           The producers of one stream: who they are, what they sent last, and what a repeated batch was
                        answered with
    publish_flow        One publisher's unanswered batches: what is sent now and to whom, what is sent again, and what a
                        lasting failure is called
    publish_window      The bytes that a publisher has in flight, within its own window and the budget of all
    read_plan           One read of a stream: from where it is served, whether the end has to be confirmed, when it
                        turns to another member
    replica             What one replica of a stream holds: its state, where its records are in the log, the chains it
                        knows, where its log begins
    replica_checkpoint  What a replica keeps on its own disk so that a restart replays only what came after: bytes, and
                        when to write them
    replica_life        Which replicas a node holds: from the catalogue and from what is on its disk to steps, and to
                        what it reports
    replica_report      What the data plane tells its control plane about the local replicas of streams
    route_table         The route table: for each destination the paths that routing computed, best first, as versioned
                        differences
    settlement          Brings lanes whose two ends know other members to the same knowledge, before they carry packets
    settling_lane       A lane between two members of which one knows a newer membership: it carries no packets until
                        both know it
    stream_frames       Raft frames as payloads of packets: whole, or in parts when one is larger than a packet
    stream_lookup       Which stream a name or an id means in a MeshView, and what is said when it means none or another
                        one
    stream_requests     Bodies of the data plane's overlay requests about streams, and of their answers
    stream_snapshot     Bytes of a stream group's state: deterministic, versioned, checksummed
    stream_state        The replicated state of one stream group: what every member computes alike from the committed
                        entries
    stream_timing       Timing and bounds of stream groups, by preset
    timing              Times of the overlay, with named presets
    view                The MeshView as the data plane uses it: members, keys, addresses and streams at one revision
"""
