"""Entry point of the ``failback`` command.

``failback serve ROLE --config FILE`` is dispatched here without importing the command line's libraries: a protected
machine has only the base package, and the mobility service has to start in a second. Everything else is the CLI.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

ROLES = {
    "configuration-server": "failback.configuration_server.main",
    "process-server": "failback.process_server.main",
    "master-target": "failback.master_target.main",
    "mobility": "failback.mobility.main",
}

_USAGE = f"""usage: failback serve ROLE --config FILE

Runs one role of Failback in the foreground; systemd units for each are in deploy/.
ROLE is one of: {", ".join(ROLES)}
"""


def main() -> int:
    """Returns the process's exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        return _serve(arguments[1:])
    if arguments == ["--version"]:
        from failback import __version__

        sys.stdout.write(f"failback {__version__}\n")
        return 0
    try:
        from failback.cli.main import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("failback"):
            raise
        sys.stderr.write(f"the command line needs {error.name}: pip install 'failback[cli]'\n")
        return 2
    return run()


def _serve(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(_USAGE)
        return 0
    if len(arguments) != 3 or arguments[0] not in ROLES or arguments[1] != "--config":
        sys.stderr.write(_USAGE)
        return 2
    try:
        module = import_module(ROLES[arguments[0]])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("failback"):
            raise
        sys.stderr.write(f"the role {arguments[0]} needs {error.name}: pip install 'failback[server]'\n")
        return 2
    status: int = module.serve(Path(arguments[2]))
    return status


if __name__ == "__main__":
    sys.exit(main())
