"""`python -m mesh_control` runs the control plane."""

from __future__ import annotations

from mesh_control.main import SERVICE, main
from meshcommon.lifecycle import run_service

if __name__ == "__main__":
    run_service(SERVICE, main)
