"""What tests of the data plane share. Not in its wheel; under a name of its own, because every project's tests are `tests`.

Files:

    identities      Nodes with keys for tests of the overlay: node `n` is named `nN`, its keys are made of its number
    line            Three forwarders in a line, node 2 the relay between the others, for tests of what a relay can do to
                    packets
    lone_owner      The owner of a replica that no catalogue knows of
    stream_cluster  Nodes with stream groups in one process, over an overlay in memory and real Raft logs: what the
                    tests beside share
"""
