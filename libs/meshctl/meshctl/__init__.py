"""The command line of the mesh, and the publishing client that it is built on (`meshctl.publisher`).

Files:

    ca_checks          Checks of the mesh's certificate authority and of certificates
    ca_commands        Commands about the mesh's certificate authority and the certificates of the node
    check_command      `meshctl check`: asks the gateway, and prints what `checks` makes of its answers
    checks             The checks of `meshctl check`: what they are called, what they depend on, and which result the
                       answers give
    confirm            Asking before what cannot be undone
    connection         The connection of one command to a gateway
    join_commands      Commands about who may join the mesh: tokens and the policy
    main               The program `meshctl`: operates a node, publishes to and reads from its streams, through the
                       node's gateway
    member_commands    Commands that change the members of a stream: `meshctl stream members ...`
    mesh_checks        Checks of the mesh: its quorum, nodes, versions, join policy, addresses and routes
    mesh_commands      Commands about the life of node and mesh
    node_checks        Checks of this node: its services, its membership, its stores and its lanes
    options            Options that every command takes, before or after its name, and how a failure leaves the process
    output             What commands print: tables for people, JSON for programs
    publish_command    `meshctl publish`: a file or standard input as records, each committed exactly once
    publisher          Publishes batches of records in order, pipelined, each exactly once
    raft_commands      Commands about the groups under streams: `meshctl raft ...` and `meshctl audit`
    source             Where published bytes come from: a file or standard input, in pieces as they are there, and cut
                       into lines
    stream_checks      Checks of the streams: their leaders, their copies on other nodes, and the replicas of this node
    stream_commands    Commands about the catalogue of streams
    subscribe_command  `meshctl subscribe`: records of a stream on standard output
    token_commands     Commands on the node itself about the operator's token of its site (ADR 0023)
    topology_commands  Commands about links and paths: what there is, what it costs, and what would become of it
    weight_commands    Commands about the weights of the link cost
"""

import os

# Before grpc is imported: its own lines about a refused handshake would stand above the sentence that says what to do.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
