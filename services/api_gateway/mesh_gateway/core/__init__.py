"""Rules of the gateway without input or output.

Files:

    batches      Records into batches and back, for callers that do not do that themselves: REST, and gRPC calls that
                 speak of records
    byte_budget  A bound on bytes that are in hand at a time, over all requests of one kind
    problem      Refusals of the web framework itself as our errors
    records      Records of a JSON body as a publish request
"""
