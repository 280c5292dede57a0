"""The command line of the mesh, and the publishing client that it is built on (`meshctl.publisher`)."""
