"""Collects what each attack test found, and writes `build/attacks/attacks.json` in the one form of every figure."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

REPORT: Final = Path("build/attacks/attacks.json")
_VERSIONS: Final = ("cryptography", "fastapi", "grpcio", "picows", "protobuf", "uvicorn")


@dataclass(slots=True)
class Attack:
    """One attack; memory is that of all processes of all nodes together."""

    name: str
    passed: bool = False
    memory_mb_before: float = 0.0
    memory_mb_after: float = 0.0
    findings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """All attacks of this run."""

    started: float = field(default_factory=time.time)
    attacks: dict[str, Attack] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    acknowledged: int = 0
    findings: dict[str, int] = field(default_factory=lambda: {"C1": 0, "C2": 0})

    def write(self, path: Path = REPORT) -> None:
        """Writes the report."""
        for name, attack in self.attacks.items():
            attack.passed = name not in self.failed
        report = {
            "name": "attacks",
            "taken_at": round(self.started),
            "machine": f"{platform.machine()}, {os.cpu_count()} processors, {platform.system()} {platform.release()}",
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in _VERSIONS},
            },
            "attacks": [asdict(attack) for attack in self.attacks.values()],
            "events": self.acknowledged,
            "findings": self.findings,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")


TALLY: Final = Tally()
