"""Docker and docker compose by their command lines, for the tests in containers.

Works with Compose v2 and docker-compose 1.29: containers are found by label, because their names differ. Everything is
made in one compose project of its own, so that a mesh that somebody runs on this machine is neither touched nor seen.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

TOOLS_IMAGE: Final = "mesh/test-tools:dev"
"""iptables, tc, strace and libfaketime, for side containers that share a namespace with the container under test."""
COMMAND_TIMEOUT_S: Final = 300.0


class CommandFailedError(Exception):
    """A command ended with another status than 0; the message carries what it printed."""


async def command(
    *words: str, environment: Mapping[str, str] | None = None, timeout_s: float = COMMAND_TIMEOUT_S
) -> str:
    """Runs a command; returns what it printed on standard output.

    Raises:
        CommandFailedError: It failed, or did not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await process.communicate()
    except BaseException as error:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(error, TimeoutError):
            raise CommandFailedError(f"{' '.join(words)}: not done within {timeout_s:.0f} s") from None
        raise
    if process.returncode:
        text = (errors or output).decode(errors="replace").strip()
        raise CommandFailedError(f"{' '.join(words)}: exit status {process.returncode}\n{text}")
    return output.decode(errors="replace")


async def docker(*words: str) -> str:
    """`docker …`."""
    return await command("docker", *words)


@dataclass(frozen=True, slots=True)
class Compose:
    """One compose project. `environment` is added to the variables that the compose file reads."""

    project: str
    environment: Mapping[str, str]
    program: tuple[str, ...]

    @classmethod
    async def find(cls, project: str, environment: Mapping[str, str]) -> Compose:
        """Chooses what MESH_TEST_COMPOSE names, otherwise `docker compose`, otherwise docker-compose.

        Raises:
            CommandFailedError: There is neither.
        """
        chosen = os.environ.get("MESH_TEST_COMPOSE", "")
        candidates = [tuple(chosen.split())] if chosen else [("docker", "compose"), ("docker-compose",)]
        for program in candidates:
            if shutil.which(program[0]):
                try:
                    await command(*program, "version")
                except CommandFailedError:
                    continue
                return cls(project, environment, program)
        raise CommandFailedError("no docker compose was found: install docker-compose or the compose plugin")

    async def __call__(self, *words: str) -> str:
        """`docker compose …` on this project."""
        return await command(*self.program, "-p", self.project, *words, environment=self.environment)

    async def down(self, *options: str, profile: tuple[str, ...] = ()) -> None:
        """Removes the containers and networks; `options` go to `down`.

        Docker 20.10 may keep an endpoint of a container that was killed while it was being connected, and then refuses to
        remove that network until the engine restarts. The network is used again by the next `up`: that is no fault of ours.
        """
        try:
            await self(*profile, "down", *options)
        except CommandFailedError as error:
            label = f"label=com.docker.compose.project={self.project}"
            if "has active endpoints" not in str(error) or await docker("ps", "--all", "--quiet", "--filter", label):
                raise
            if "--volumes" in options and (
                found := (await docker("volume", "ls", "--quiet", "--filter", label)).split()
            ):
                await docker("volume", "rm", *found)
            print("the engine keeps a network: an endpoint of a killed container is left in it", flush=True)

    async def version(self) -> str:
        """For the report."""
        return (await command(*self.program, "version", "--short")).strip()

    async def container(self, service: str) -> str:
        """Id of the service's container, running or not. Raises CommandFailedError when there is none."""
        found = (await docker("ps", "--all", "--quiet", "--no-trunc", *self._labels(service))).split()
        if not found:
            raise CommandFailedError(f"there is no container of {service}")
        return found[0]

    async def inspect(self, service: str) -> dict[str, Any]:
        """What `docker inspect` says of the service's container."""
        document: list[dict[str, Any]] = json.loads(await docker("inspect", await self.container(service)))
        return document[0]

    async def containers(self) -> dict[str, str]:
        """Running containers: service → id."""
        lines = await docker(
            "ps", "--no-trunc", "--format", '{{.Label "com.docker.compose.service"}} {{.ID}}', *self._labels()
        )
        return dict(line.split() for line in lines.splitlines())

    def _labels(self, service: str = "") -> list[str]:
        labels = ["--filter", f"label=com.docker.compose.project={self.project}"]
        return [*labels, "--filter", f"label=com.docker.compose.service={service}"] if service else labels

    async def logs(self, service: str, lines: int = 20) -> str:
        """The end of what the service printed."""
        process = await asyncio.create_subprocess_exec(
            "docker",
            "logs",
            "--tail",
            str(lines),
            await self.container(service),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return output.decode(errors="replace")

    async def readiness(self, service: str, admin_listen: str) -> str:
        """What the service answers on /readyz, ready or not. `admin_listen` is the address it serves that at."""
        return await docker("exec", await self.container(service), "bash", "-c", f"mesh-health {admin_listen} || true")

    async def crash(self, service: str) -> int:
        """SIGKILL to the service's first process, as a crash: the restart policy acts, which `docker kill` prevents.

        Returns:
            The pid that was killed, on the host.
        """
        pid = int((await self.inspect(service))["State"]["Pid"])
        await self.beside("--pid", "host", program=("bash", "-c", f"kill -KILL {pid}"))
        return pid

    async def beside(self, *options: str, program: tuple[str, ...]) -> str:
        """Runs a program in a container of the tools image, for instance in another container's namespace."""
        label = f"com.docker.compose.project={self.project}"
        return await docker("run", "--rm", "--label", label, *options, TOOLS_IMAGE, *program)

    async def in_network_of(self, service: str, *program: str) -> str:
        """Runs a program of the tools image in the service's network namespace."""
        network = f"container:{await self.container(service)}"
        return await self.beside("--network", network, "--cap-add", "NET_ADMIN", program=program)

    async def disconnect(self, network: str, service: str) -> None:
        """Takes the service off a network, at once and without a word to the peers."""
        await docker("network", "disconnect", "--force", f"{self.project}_{network}", await self.container(service))

    async def connect(self, network: str, service: str, *aliases: str) -> None:
        """Puts it back, with the names that the compose file gave it there."""
        options = [word for alias in aliases for word in ("--alias", alias)]
        await docker("network", "connect", *options, f"{self.project}_{network}", await self.container(service))

    async def address(self, network: str, service: str) -> str:
        """The service's address on a network."""
        networks = (await self.inspect(service))["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_{network}"]["IPAddress"])
