"""`python -m mesh_gateway`."""

from __future__ import annotations

from mesh_gateway.main import run

if __name__ == "__main__":
    run()
