"""Decisions of the control plane: no sockets, files, clocks, threads or randomness of its own.

Files:

    ca_checks       What is checked of a CA before it is proposed, and of what nodes ask each other about certificates
    ca_state        The mesh's CA as the group keeps it: roots, intermediate, its key sealed to voters, and who was ever
                    given that key
    confirmations   Which events of stream groups this node should report to the MCG, from what its replicas say
    delegator       Delegates the key of one service of this site, and says when the service has to be asked for another
                    one
    encoding        The MCG's values as protobuf: the MeshView, and back from a snapshot
    join_plan       How a newcomer asks for its place: at which addresses, in which order, how often, and which refusal
                    it reports in the end
    join_rules      Who may become a member: the join policy, and the tokens that a mesh knows
    join_tokens     Join tokens: the secret's verifier, the newcomer's proof, the mesh's confirmation, and the token as
                    one line of text
    leaderless      Which streams have had no leader for so long that an operator should hear of it, as the local
                    replicas know
    limits          Bounds on what the replicated state holds, checked in apply: no caller can make it grow for ever
    mcg_state       The replicated state of the Mesh Control Group and the one way to change it
    member_changes  How the members that a stream should have change, and how a membership ends
    model           What the MCG agrees on, as immutable values: nodes, streams, their states and the mesh's health
    peer_answers    What control planes ask of and answer to each other, read strictly: fields and bounds first, then
                    use
    reachability    Which nodes the MCG's leader should declare reachable or not, from how long each member has been
                    silent
    refusals        Refusals as the replicated state remembers them: in short, since a thousand of them travel with each
                    snapshot
    replica         One replica of the MCG's state as its log goes through it, up to the first entry that this software
                    cannot apply
    rows            The MCG's state as rows of the projection, and what changed between two such sets of rows
    rules           What the MCG refuses: one check per command, each with its code and a sentence that says what to do
    status          Health of the mesh from its nodes
    timing          Timing of the control plane by preset
    versions        The version gate: which version of the mesh introduced each command, and what this software can
                    apply
    voters          The single next step from the MCG's Raft configuration to the one that the membership asks for
"""
