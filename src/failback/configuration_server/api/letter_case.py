"""ARM's paths ignore the case of letters: PowerShell writes ``/Subscriptions/``, others ``/resourcegroups/``.

The fixed words of a path get the case under which they are served before anything looks at it; names stay as they were sent.
Which segments are words follows from ARM's form: below a vault, type and name alternate, and an action comes after a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from failback.configuration_server.api.arm import VAULT

_HEAD = [part for part in VAULT.split("/") if part]
_OWN = "failback"


def words_of(paths: Iterable[str]) -> Mapping[str, str]:
    """The words of all routes below a vault, by their lower case."""
    below = (path.removeprefix(VAULT).split("/") for path in paths if path.startswith(VAULT))
    return {word.lower(): word for parts in below for word in parts if word and not word.startswith("{")}


def as_served(path: str, words: Mapping[str, str]) -> str:
    """The path with its words as the routes have them; any path that is not below a vault comes back as it was."""
    parts = path.split("/")[1:]
    if len(parts) <= len(_HEAD) or any(
        part.lower() != word.lower() for part, word in zip(parts, _HEAD, strict=False) if not word.startswith("{")
    ):
        return path
    head = [part if word.startswith("{") else word for part, word in zip(parts, _HEAD, strict=False)]
    below = parts[len(_HEAD) :]
    if below[0].lower() == _OWN:
        served = [words.get(part.lower(), part) if index < 2 else part for index, part in enumerate(below)]
    else:
        served = [words.get(part.lower(), part) if index % 2 == 0 else part for index, part in enumerate(below)]
    return "/" + "/".join([*head, *served])
