"""The reference documents say what the programs do: every route and every command is in them, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from fastapi import FastAPI

from failback.cli import output
from failback.cli.main import app
from failback.configuration_server.api import Services, arm_router
from failback.configuration_server.api.arm import CONTAINER_PATH, VAULT
from failback.configuration_server.api.unavailable import EMPTY, REFUSED
from failback.configuration_server.database import Database
from failback.configuration_server.registry import News, Orders
from failback.configuration_server.workflows.group_point import GroupPoints

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


class NoJobs:
    """Routes are only listed here; no job is ever started."""

    async def start(self, *_: Any, **__: Any) -> str:
        raise AssertionError

    async def cancel(self, job_id: str) -> None:
        raise AssertionError

    async def restart(self, job_id: str) -> str:
        raise AssertionError

    async def resume(self, job_id: str) -> str:
        raise AssertionError


def served(tmp_path: Path) -> set[str]:
    database, news = Database.in_directory(tmp_path), News()
    services = Services(
        database=database, orders=Orders(database, news), news=news, fabrics={}, jobs=NoJobs(), groups=GroupPoints(database)
    )  # fmt: skip
    application = FastAPI()
    application.include_router(arm_router(services))
    found = set()
    for path, methods in application.openapi()["paths"].items():
        short = path.removeprefix(VAULT).replace(f"{CONTAINER_PATH}/replicationProtectedItems/{{item}}/", "…/{item}/")
        short = short.replace(f"{CONTAINER_PATH}/", "{container}/")
        short = re.sub(r"^/replicationFabrics/\{fabric\}/replicationProtectionContainers/\{name\}", "…/{name}", short)
        found |= {f"{method.upper()} {short}" for method, said in methods.items() if said["tags"] != ["not available"]}
    database.close()
    return found


def test_every_route_is_documented_and_every_documented_route_is_served(tmp_path: Path) -> None:
    text = (REFERENCE / "api.md").read_text(encoding="utf-8")
    documented = set()
    for method, paths in re.findall(r"^\| (GET|PUT|POST|PATCH|DELETE) \| (.*?) \|", text, re.MULTILINE):
        for path in re.findall(r"`([^`]+)`", paths):
            long = "/replicationJobs/{job_id}" + path.removeprefix("…") if path in ("…/restart", "…/resume") else path
            documented.add(f"{method} {long}")
    assert documented == served(tmp_path)


def test_what_is_not_available_is_documented_with_its_reason() -> None:
    text = (REFERENCE.parent / "api.md").read_text(encoding="utf-8")
    rows = {line for line in text.splitlines() if line.startswith("| ") and "`/replication" in line}
    empty = {f"| `{path}` | {why} |" for path, why in EMPTY.items()}
    refused = {f"| {method} `{path}` | {why} | {instead} |" for (method, path), (why, instead) in REFUSED.items()}
    assert rows == empty | refused


def commands() -> set[str]:
    found = set()
    for command in app.registered_commands:
        found.add(command.name or command.callback.__name__)  # type: ignore[union-attr]
    for group in app.registered_groups:
        if group.name == "lab":
            found.add("lab")
            continue
        for command in group.typer_instance.registered_commands:  # type: ignore[union-attr]
            found.add(f"{group.name} {command.name or command.callback.__name__}")  # type: ignore[union-attr]
    return found


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    table = text.split("## Commands")[1].split("\n\n")[1]
    documented = set()
    for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE)[1:]:
        for command in re.findall(r"`([^`]+)`", cell):
            words = [word for word in command.removeprefix("failback ").split() if word == word.lower()]
            documented.add(" ".join(words[: 2 if words[0] in GROUPS else 1]))
    assert documented == commands()


GROUPS = {group.name for group in app.registered_groups if group.name != "lab"}


def test_the_exit_statuses_are_documented() -> None:
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8").split("## Exit statuses")[1]
    documented = {int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    named = {output.FAILED, output.USAGE, output.NOT_FOUND, output.REFUSED, output.UNREACHABLE, output.CANCELLED}
    assert documented == named | {0, 130}
    assert isinstance(app, typer.Typer)
