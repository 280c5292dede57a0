"""`make e2e-docker`: the mesh of compose.yaml in containers, step by step, with a table of what each step took.

Needs Docker, a compose, and the images (`make images`). Makes a compose project of its own and removes it at the end,
whatever happens. Exit status 0 only if every step passed; a step that fails ends the run, with the logs of the services.
MESH_TEST_COMPOSE chooses the compose program; names of steps as arguments run only those, after the start-up.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from tests.docker import bad_input, bad_surroundings, faults, story
from tests.docker.engine import TOOLS_IMAGE, CommandFailedError, command, docker
from tests.docker.stage import Narrator, Stage, empty_stage

Step = Callable[[Stage], Awaitable[None]]
STEPS: Final[tuple[Step, ...]] = (
    story.start_up,
    story.hardening,
    story.nobody_reaches_c,
    story.demo_story,
    story.prometheus_sees_every_service,
    faults.wan_goes_and_comes_back,
    faults.site_loses_both_wans,
    faults.leader_is_paused,
    faults.stores_stop_and_start,
    faults.every_container_crashes,
    faults.delay_and_loss,
    faults.everything_stops_and_starts,
    bad_input.services_say_what_is_wrong,
    bad_input.wrong_database_password,
    bad_input.database_of_a_newer_schema,
    bad_surroundings.compose_says_what_is_wrong,
    bad_surroundings.disk_is_full,
    bad_surroundings.clock_is_off_by_an_hour,
    faults.wiped_node_is_recognised,
)


async def run(chosen: Sequence[str]) -> bool:
    """Runs the steps; whether all passed."""
    narrator = Narrator()
    steps = [step for step in STEPS if not chosen or step is story.start_up or step.__name__ in chosen]
    took: list[tuple[str, str, float]] = []
    await command(
        "docker", "build", "--quiet", "--tag", TOOLS_IMAGE, "tests/docker", environment={"DOCKER_BUILDKIT": "0"}
    )
    with tempfile.TemporaryDirectory(prefix="mesh-docker-") as directory:
        async with empty_stage(Path(directory), narrator) as stage:
            for number, step in enumerate(steps, 1):
                name = step.__name__.replace("_", " ")
                narrator.say(f"{number} of {len(steps)}: {name}")
                started = time.monotonic()
                verdict = "FAILED"
                try:
                    await step(stage)
                    verdict = "ok"
                except (Exception, ExceptionGroup):  # noqa: BLE001 - whatever a step raises is its failure
                    traceback.print_exc()
                    await _show_logs(stage)
                took.append((name, verdict, time.monotonic() - started))
                if verdict != "ok":
                    break
            narrator.say("removing the containers, networks and volumes of this run")
    print()
    for name, verdict, seconds in took:
        print(f"    {name:<32} {verdict:>6} {seconds:7.1f} s")
    passed = len(took) == len(steps) and all(verdict == "ok" for _, verdict, _ in took)
    narrator.say("all steps passed" if passed else "NOT all steps passed")
    return passed


async def _show_logs(stage: Stage) -> None:
    for service in sorted(await stage.compose.containers()):
        print(f"---- {service}\n{await stage.compose.logs(service, 8)}", file=sys.stderr)


async def _docker_answers() -> bool:
    try:
        await docker("version", "--format", "{{.Server.Version}}")
    except CommandFailedError:
        return False
    return True


async def main(chosen: Sequence[str]) -> int:
    """The process; Ctrl-C and SIGTERM remove everything, too."""
    if not shutil.which("docker") or not await _docker_answers():
        print("e2e-docker: SKIPPED: there is no Docker here")
        return 0
    task = asyncio.create_task(run(chosen), name="steps")
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return 0 if await task else 1
    except asyncio.CancelledError:
        print("interrupted; everything of this run is removed")
        return 130
    except CommandFailedError as error:
        print(f"e2e-docker: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
