"""What every service of a node needs: settings, ids, errors, logs, telemetry, gRPC, admin pages, lifecycle.

Files:

    address               Addresses as text: the one strict parser, and which listeners may be reached from other
                          machines
    admin                 The admin port of every service: `/healthz` (alive), `/readyz` (useful, with reasons),
                          `/metrics` (Prometheus)
    admission             Who may speak to an HTTP listener that cannot authenticate anyone yet: programs, never foreign
                          web pages
    barrier               Exception barriers: an unexpected failure ends what caused it, not the service
    boot_certificate      TLS on lanes: a key and certificate of one process start, and contexts for both ends
    cancellation          Cancellation that a library lost
    cost_weights          Weights of the link cost by traffic class: defaults, bounds, and how a change is read
    datadir               A service's data directory: locked, marked, and recognised when it is foreign, of another
                          version or half made
    deadline_timer        Wakes the driver of a core at the deadline that the core names, instead of asking it at every
                          tick of a clock
    delegated_keys        The keys of a service that signs for its node: made here, kept in `delegated.key`, replaced
                          every twelve hours
    delegation            Delegations: the identity key, which stays in the control plane, lets a key of another service
                          speak for the node
    durable               Small files that survive a crash: written beside, fsynced, renamed, directory fsynced
    error_meanings        What each code means, in one sentence: the title of problem+json and the text of
                          docs/errors.md
    errors                One error tree with stable codes, and the one table that maps codes to gRPC, HTTP, exit status
                          and effect
    frame_ports           Opens WebSockets that carry binary frames: accepts them on a port, or dials one
    frame_protocol        picows' protocol with what it lacks: sockets are counted before the upgrade, and what has come
                          is counted before it is whole
    frame_socket          A WebSocket that carries binary frames, for lanes and for clients: what is known of the
                          library (`picows`) after the handshake
    go_back_n             Go-back-N: what was handed in and is not answered, in order
    grpc_client           Channels to other services, and their errors as MeshError
    grpc_server           A service's gRPC server: TLS and callers, health, error mapping, correlation ids, size limits,
                          no shared port
    guarded_store         One store with its guard: what has to become durable and what is said, in the order that makes
                          words true
    heap                  Gives freed memory back to the system after a burst
    http_server           The HTTP server of every service: uvicorn, with a bound on everything that a stranger can
                          claim
    ids                   Distinct types for the numbers that must never be mixed up, and the grammar of names
    key_signer            The `Signer` that holds the private key itself, and the file that it keeps it in
    lifecycle             How a service process starts, runs and stops: one place for signals, start-up errors and exit
                          statuses
    listen                Binding to an address, with an error that says what to do when it is taken
    logging               JSON logs on standard error, one object a line, with correlation and trace ids
    membership            Who the members of a mesh are, in a form that can be compared, vouched for and shown to
                          somebody who missed a change
    mesh_certificates     Certificates of the mesh CA: how root, intermediate and node certificates look, and the strict
                          check of each
    operator_token        The operator's token of a site: who may use a listener that other machines reach (ADR 0023,
                          docs/design/edges.md)
    overlay_attachment    One service's end of the overlay: the Attach stream of packets to and from this site's data
                          plane
    overlay_calls         The one driver of overlay requests: calls that wait, handlers that answer, repeats on a timer
    peer_text             Text of peers, made safe to quote in a log, an error or a frame
    postgres              The site's Postgres: one async engine, and what to tell of its absence
    problem               Errors as problem documents: what every HTTP listener answers instead of what was asked
    read_budget           What all connections of one port together may hold of what was sent to them and not yet used
    record_batches        Batches opened and closed on behalf of people: the errors of `meshwire.records` in words that
                          say what to do
    record_json           How a record that was read appears as a message and in JSON, the same at the gateway and on
                          the command line
    redis_store           The site's Redis or Valkey: a client for a URL whose options have been read strictly
                          (`store_urls`)
    request_head          What the head of an HTTP request may be, beyond what the HTTP parser itself refuses
    requests              Overlay requests: correlation, retransmission, deadlines, duplicate suppression and limits
                          over best-effort packets
    service_certificates  Certificates of a site's services: the profile, how one is built, and the strict check of one
                          that is shown
    settings              Settings of a service: defaults < `mesh.toml` (MESH_CONFIG_FILE) < environment
    signed_parts          Byte strings for signatures, key derivations and hashes: a list of parts, each behind its
                          length
    signer                The port through which a service signs: what speaks for this node, without the key itself
    site_callers          Who of a site may make which gRPC call: the arrows of architecture §2, checked by the caller's
                          certificate at each call
    site_channel          A gRPC channel to another service of the same site, over mutual TLS with certificates that
                          change
    site_files            The certificate of one service for gRPC within its site: three files, read again when they
                          change
    site_start            The start of a service that needs a certificate for the gRPC of its site: waits for the files,
                          and says so meanwhile
    socket_gate           How many sockets strangers may hold open on one port before they have shown who they are
    store_files           The files that say which store a Raft log directory is, and what was seen of the peers' stores
    store_guard           Who may be heard: the exchange of store ids and boot numbers between the nodes that share Raft
                          groups
    store_keeper          The driver of a guarded store: it owns the files, the clock and the wake-ups
    store_lineage         Lineage of a store: its incarnations, and whether its announcement agrees with what was seen
                          of it before
    store_record          What a Raft log directory says of itself on disk, what is believed of it at a start, and how
                          it is given up
    store_urls            What the URLs of Postgres and Redis say about TLS, strictly: an option that is not understood
                          must not be passed over
    stream_ids            A stream id that is not the one behind the name: what a catalogue knows of it, and the refusal
                          that says so
    telemetry             Traces by OpenTelemetry
    tls_accept            Accepts TLS connections so that a socket counts before its TLS handshake, not only after it
    tls_contexts          TLS contexts of both ends, and what went wrong with TLS by name
    tls_files             TLS for users: an operator's certificate and key from two PEM files, read again when they
                          change
    token_bucket          A token bucket: so many a second on average, and bursts
    wrong_proofs          Limit on wrong proofs (of join tokens, operator's tokens) by the host that they come from
                          (docs/design/identity.md J4)
"""
