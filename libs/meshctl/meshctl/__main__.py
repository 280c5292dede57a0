"""`python -m meshctl`."""

from __future__ import annotations

from meshctl.main import main

if __name__ == "__main__":
    main()
