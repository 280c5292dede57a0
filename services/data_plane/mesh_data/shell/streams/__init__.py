"""Publishing, reading and looking at streams, wherever their leaders are: calls, requests of other nodes, gRPC.

Files:

    audit              Audits one stream: the hash chains of all members at one index, and each member's log against its
                       chain
    byte_room          A budget of bytes for work that is short: whoever finds no room waits, first come, first served
    data_api           MeshDataService: producers, publish, read and describe, for this site's callers
    log_audit          Reads a replica's log back from the disk and recomputes its hash chain
    publish_call       One Publish call: batches in, answers out in the same order, whoever leads the stream and
                       whatever breaks meanwhile
    raft_api           MeshDataService: handing a leadership over, the replicas of this node, and the audit of a stream
    raft_serving       What this node answers other nodes, and its own callers, about the Raft side of the streams it
                       holds
    read_call          Reading a stream: from the local replica where there is one, else from a member, in chunks of a
                       bounded size
    stream_budgets     What all callers of this node together may have under way: bytes of publishers, and bytes read
                       from local logs
    stream_calls       What this site's callers ask about a stream, whoever leads it and through whichever port they
                       came
    streams_asking     Asking a stream's leader, wherever it is, until it answers or the time is up
    streams_catalogue  Which stream is meant, and which node to ask about it
    streams_serving    What this node answers other nodes about the streams it holds: publish, init producer, fetch,
                       describe
"""
