"""``failback serve ROLE --config FILE``: one role in the foreground, found by name and imported only then.

Apart from the command line because a protected machine has only the base package, and the mobility service has to start in
a second: nothing of the CLI's libraries is imported here.
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


def serve(arguments: list[str]) -> int:
    """``arguments`` are what follows ``serve``. Returns the process's exit status; 2 for a wrong call or a missing library."""
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
