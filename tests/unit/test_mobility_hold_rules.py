"""Which control groups a hold freezes, and which servers of the kernel it has to know of. Pure rules and small trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from failback.errors import FreezeError
from failback.mobility import kernel_servers
from failback.mobility.cgroups import choose, hierarchy

TREE = {
    "": ["/init.scope", "/system.slice", "/user.slice", "/failback.slice"],
    "/system.slice": ["/system.slice/ssh.service", "/system.slice/failback-mobility.service"],
    "/failback.slice": ["/failback.slice/failback-mobility.service"],
}


def children(path: str) -> list[str]:
    return TREE.get(path, [])


def test_all_but_init_and_our_own_slice() -> None:
    chosen = choose(children, frozenset({"/init.scope", "/failback.slice/failback-mobility.service"}))
    assert chosen.frozen == ("/system.slice", "/user.slice")
    assert chosen.opened == ("", "/failback.slice")


def test_a_service_inside_a_shared_slice_is_left_out_of_it() -> None:
    chosen = choose(children, frozenset({"/init.scope", "/system.slice/failback-mobility.service"}))
    assert chosen.frozen == ("/failback.slice", "/system.slice/ssh.service", "/user.slice")
    assert chosen.opened == ("", "/system.slice")


def test_a_name_that_only_begins_alike_is_frozen() -> None:
    tree = {"": ["/failback", "/failback-other"], "/failback": ["/failback/agent"]}
    chosen = choose(lambda path: tree.get(path, []), frozenset({"/failback/agent"}))
    assert chosen.frozen == ("/failback-other",)


def test_the_hierarchy_is_found_pure_and_hybrid() -> None:
    pure = "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    hybrid = "25 20 0:22 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n" + pure.replace(
        "/sys/fs/cgroup", "/sys/fs/cgroup/unified"
    )
    assert hierarchy(pure) == Path("/sys/fs/cgroup")
    assert hierarchy(hybrid) == Path("/sys/fs/cgroup/unified")
    with pytest.raises(FreezeError, match="no cgroup v2"):
        hierarchy("25 20 0:22 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw\n")


def put(root: Path, path: str, text: str) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def test_servers_of_the_kernel_are_found(tmp_path: Path) -> None:
    assert kernel_servers.running(tmp_path) == ()
    put(tmp_path, "proc/fs/nfsd/threads", "0\n")
    assert kernel_servers.running(tmp_path) == ()
    put(tmp_path, "proc/fs/nfsd/threads", "8\n")
    put(
        tmp_path,
        "proc/drbd",
        "version: 8.4\n 0: cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate\n    ns:0 nr:8\n",
    )
    put(tmp_path, "sys/kernel/config/target/core/iblock_0/data/enable", "1\n")
    put(tmp_path, "sys/kernel/config/target/core/iblock_0/data/udev_path", "/dev/vdb1\n")
    assert kernel_servers.running(tmp_path) == ("nfsd", "LIO", "DRBD")
    assert kernel_servers.not_held(("/dev/vda",), tmp_path) == ("DRBD receives from its primary",)
    assert "LIO serves /dev/vdb1" in kernel_servers.not_held(("/dev/vdb",), tmp_path)
