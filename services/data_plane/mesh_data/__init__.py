"""Data plane of a node: lanes to other nodes, forwarding between them, and the stream groups that live on this node."""
