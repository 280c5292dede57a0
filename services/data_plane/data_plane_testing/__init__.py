"""What tests of the data plane share. Not in its wheel; under a name of its own, because every project's tests are `tests`.

Files:

    handshakes      Two sides of a lane handshake without a wire, for tests: members 1 and 2 of a mesh, a newcomer, and
                    hellos that somebody changes
    identities      Nodes with keys for tests of the overlay: node `n` is named `nN`, its keys are made of its number
    line            Three forwarders in a line, node 2 the relay between the others, for tests of what a relay can do to
                    packets
    lone_owner      The owner of a replica that no catalogue knows of
    settling        Overlay cores that know different memberships, joined by lanes without a wire, for tests of how they
                    settle
    stream_cluster  Nodes with stream groups in one process, over an overlay in memory and real Raft logs: what the
                    tests beside share
    tls_middle      Two overlays with somebody in between who ends TLS and reads what passes, for tests
"""
