"""`python -m mesh_routing`."""

from __future__ import annotations

from mesh_routing.main import run

if __name__ == "__main__":
    run()
