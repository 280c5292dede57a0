"""What each code means, in one sentence: the title of problem+json and the text of docs/errors.md.

A raised error carries its own, more exact sentence; this one is the same for every occurrence (RFC 9457, `title`).
"""

from __future__ import annotations

from typing import Final

from meshcommon.errors import ErrorCode

MEANINGS: Final[dict[ErrorCode, str]] = {
    ErrorCode.INVALID_ARGUMENT: "The request is malformed or a value in it is not allowed.",
    ErrorCode.INTERNAL: "A fault of the software; the service's log has the details.",
    ErrorCode.UNAVAILABLE: "A service of this site does not answer.",
    ErrorCode.DEADLINE_EXCEEDED: "The answer did not come in time.",
    ErrorCode.ILLEGAL_NAME: "A name does not follow the grammar of names.",
    ErrorCode.MESSAGE_TOO_LARGE: "A message is larger than the limit that the error states.",
    ErrorCode.ALREADY_MEMBER: "This node already belongs to a mesh.",
    ErrorCode.NOT_A_MEMBER: "This node belongs to no mesh.",
    ErrorCode.NODE_STOPPED: "This node was stopped on purpose and has to be started first.",
    ErrorCode.MESH_ID_MISMATCH: "The node at that address belongs to another mesh than the one named.",
    ErrorCode.ADDRESS_UNREACHABLE: "Nothing answers at the address.",
    ErrorCode.WRONG_PROTOCOL: "What answers at the address is not a node of a mesh.",
    ErrorCode.NAME_TAKEN: "Another node of the mesh has this name.",
    ErrorCode.KEY_TAKEN: "Another node of the mesh has this public key.",
    ErrorCode.UNKNOWN_NODE: "The mesh has no node of this name or id.",
    ErrorCode.LAST_NODE: "The last node of a mesh cannot leave it.",
    ErrorCode.NO_QUORUM: "Too few voters are reachable to decide anything.",
    ErrorCode.NOT_LEADER: "The node asked does not lead the group; the details may name the one that does.",
    ErrorCode.MESH_CRITICAL: "Half of the mesh or more is unreachable, and such changes are refused until it is back.",
    ErrorCode.HANDSHAKE_FAILED: "Two nodes could not agree on a lane.",
    ErrorCode.VERSION_MISMATCH: "Two nodes speak no common version of the protocol.",
    ErrorCode.KEY_MISMATCH: "A node could not prove the key that the mesh knows it by.",
    ErrorCode.NO_PATH: "No working path leads to the node.",
    ErrorCode.STREAM_NOT_FOUND: "There is no stream of this name.",
    ErrorCode.STREAM_EXISTS: "A stream of this name exists already.",
    ErrorCode.STREAM_NOT_FORMED: "The stream exists, but its group has not formed yet.",
    ErrorCode.STREAM_UNAVAILABLE: "The stream's group has no leader that can be reached.",
    ErrorCode.STREAMS_AT_RISK: "The change would cost streams their quorum.",
    ErrorCode.MEMBER_COUNT: "A stream has 2 to 10 members.",
    ErrorCode.MEMBERS_CHANGING: "An earlier change of the stream's members has to end first.",
    ErrorCode.UNKNOWN_GROUP: "The node asked does not hold a replica of this group yet, or no longer.",
    ErrorCode.WAIT_REQUIRED: "A publish has to say what it waits for.",
    ErrorCode.EMPTY_BATCH: "A publish has to hold at least one record.",
    ErrorCode.OFFSET_PAST_END: "The offset lies beyond the end of the stream.",
    ErrorCode.OFFSET_BELOW_FLOOR: "The offset lies below the first record that is still retained.",
    ErrorCode.PRODUCER_FENCED: "Another producer has taken over this producer's name.",
    ErrorCode.PRODUCER_EXPIRED: "The producer's id is no longer known.",
    ErrorCode.SEQUENCE_GAP: "The sequence number is not the one that follows the last committed record.",
    ErrorCode.OUTCOME_UNKNOWN: "Whether the request took effect cannot be known; a retry may double it.",
    ErrorCode.BACKPRESSURE: "More is in flight than can be taken; slow down.",
    ErrorCode.DISK_PRESSURE: "The disk of a member of the stream is short of room.",
    ErrorCode.STORAGE_FAILED: "The node's disk failed, and what needs it is closed.",
    ErrorCode.ROUTE_NOT_FOUND: "The gateway has nothing at this path.",
    ErrorCode.METHOD_NOT_ALLOWED: "The path does not support this HTTP method.",
    ErrorCode.MEDIA_TYPE_NOT_SUPPORTED: "The body's media type is not one that this path takes.",
    ErrorCode.ORIGIN_NOT_ALLOWED: "The request comes from a web page or host name that is not the gateway's own.",
    ErrorCode.SETTING_INVALID: "A setting has a value that is not allowed.",
    ErrorCode.SETTING_UNKNOWN: "A setting of this name does not exist.",
    ErrorCode.INSECURE_NOT_ALLOWED: "Running without protection has to be asked for.",
    ErrorCode.ADDRESS_IN_USE: "Another process listens on the address.",
    ErrorCode.DATA_DIR_FOREIGN: "The data directory belongs to another node or service.",
    ErrorCode.DATA_DIR_NEWER: "The data directory was written by a newer version.",
    ErrorCode.DATA_DIR_INCOMPLETE: "The data directory is half written or damaged.",
    ErrorCode.DATA_DIR_LOCKED: "Another process uses the data directory.",
    ErrorCode.DATA_DIR_UNWRITABLE: "The data directory cannot be written.",
    ErrorCode.SCHEMA_NEWER: "The database's schema is newer than this version.",
}
