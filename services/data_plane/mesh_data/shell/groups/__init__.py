"""Stream groups of this node: the Raft host's driver, replicas, their members, checkpoints and disks.

Files:

    checkpoint_files  The checkpoints of this node's replicas as files: a directory a stream, a file a checkpoint, named
                      by its applied index
    checkpointing     Writing the checkpoints of this node's replicas, one after another, and opening replicas at them
    disk_watch        Looks at the file system of this node's log, tells the nodes it shares streams with, and keeps a
                      reserve for a full one
    entry_reader      Entries of this node's groups for readers: recent ones from memory at once, older ones by a few
                      threads
    group_frames      Raft frames of stream groups to and from the overlay, past the store guard
    group_members     Carries out what a stream group's leader does for its members (`core.group_leader`), and tells a
                      group whom the catalogue names
    group_opening     How a stream's group comes to be on this node: created as the catalogue says, and told from one of
                      a former membership
    group_recovery    Attested recovery of a stream's group: an operator names who survives, and this node's replica
                      goes on with them alone
    groups            The stream groups of this node: one Raft host, its packets, and replicas as the catalogue wants
                      them
    outdated          What a node does about replicas that met an entry of a later version: it says so, and does not
                      lead them
    proposals         What a proposal of a replica comes to, as a future
    read_points       Read points of one replica as futures, and how new they make its view
    replica           One local replica of a stream: its Raft group, its state, and who waits for either
    replica_log       Reading one local replica: from an offset to batches, through the offset index and the Raft log
    replica_owner     What a replica asks and tells the one that opened it
    run_attempt       A run of batches that was proposed in one call, and what becomes of it
    store_truth       Whether the log of this node's streams, and those of the peers, are what they were
"""
