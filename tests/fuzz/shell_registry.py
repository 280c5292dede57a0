"""All fuzz targets of entry points by name, except REST, whose inputs are requests and not bytes (`shell_rest`)."""

from __future__ import annotations

from typing import Final

from tests.fuzz.shell_control import CONTROL_TARGETS
from tests.fuzz.shell_grpc import GRPC_TARGETS
from tests.fuzz.shell_overlay import OVERLAY_TARGETS
from tests.fuzz.shell_targets import ShellTarget

SHELL_TARGETS: Final[dict[str, ShellTarget]] = {
    target.name: target for target in (*OVERLAY_TARGETS, *CONTROL_TARGETS, *GRPC_TARGETS)
}
