"""Connections of the site's own applications over the client WebSocket.

Files:

    client_listener  The client listener: accepts WebSocket connections of this site's applications, refuses the rest in
                     clear text
    client_room      What all connections of the client port together may hold: batches that wait for their readers,
                     producers and reads
    client_session   One application's connection: its requests in, their answers out, on a WebSocket of
                     `meshwire.client`
"""
