"""What every service of a node needs: settings, ids, errors, logs, telemetry, gRPC, admin pages, lifecycle."""
