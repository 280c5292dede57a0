"""`python -m mesh_data` runs the data plane."""

from __future__ import annotations

from mesh_data.main import SERVICE, main
from meshcommon.lifecycle import run_service

if __name__ == "__main__":
    run_service(SERVICE, main)
