"""Entry point of the ``failback`` command: ``serve`` goes straight to a role, everything else to the command line."""

from __future__ import annotations

import sys

from failback import __version__
from failback.serve import serve


def main() -> int:
    """Returns the process's exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        return serve(arguments[1:])
    if arguments[:1] == ["repoint"]:
        from failback.transport import repoint

        return repoint.main(arguments[1:])
    if arguments == ["--version"]:
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


if __name__ == "__main__":
    sys.exit(main())
