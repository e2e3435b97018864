"""What decides whether a machine boots elsewhere is read from its files; what is not there is not guessed."""

from __future__ import annotations

from pathlib import Path

from failback.mobility.boot_facts import BootFacts, read
from failback.model.components import MachineFacts


def put(root: Path, name: str, text: str = "") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_an_empty_root_tells_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) == MachineFacts()


def test_a_service_is_enabled_by_its_link(tmp_path: Path) -> None:
    put(tmp_path, "etc/systemd/system/failback-mobility.service")
    assert read(tmp_path).service_start == "disabled"
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "failback-mobility.service").symlink_to("../failback-mobility.service")
    assert read(tmp_path).service_start == "enabled"


def test_disks_named_as_the_kernel_does(tmp_path: Path) -> None:
    put(
        tmp_path, "etc/fstab", "# /dev/sda1 was / before\nUUID=1 / ext4\n/dev/sdb1 /data xfs\n/dev/mapper/vg-x /x xfs\n"
    )
    put(
        tmp_path, "boot/grub/grub.cfg", "set root=hd0\n  linux /vmlinuz root=/dev/nvme0n1p2 ro\n linux /b root=UUID=1\n"
    )
    assert read(tmp_path).unstable_names == ("/etc/fstab: /dev/sdb1", "/boot/grub/grub.cfg: /dev/nvme0n1p2")


def test_the_loader_at_the_removable_media_path(tmp_path: Path) -> None:
    put(tmp_path, "boot/efi/EFI/debian/grubx64.efi")
    assert not read(tmp_path).efi_fallback
    put(tmp_path, "boot/efi/EFI/BOOT/BOOTX64.EFI")
    assert read(tmp_path).efi_fallback


def test_network_configuration(tmp_path: Path) -> None:
    text = "auto eth0\niface eth0 inet dhcp\niface eth1 inet static\n  address 10.0.0.5/24\niface lo inet loopback\n"
    put(tmp_path, "etc/network/interfaces", text)
    put(tmp_path, "etc/udev/rules.d/70-persistent-net.rules", 'ATTR{address}=="52:54:00:00:00:01", NAME="eth0"\n')
    found = read(tmp_path)
    assert (found.network_renderer, found.dhcp_interfaces) == ("ifupdown", ("eth0",))
    assert found.static_addresses == ("eth1 10.0.0.5/24",)
    assert found.bound_to_hardware == ("/etc/udev/rules.d/70-persistent-net.rules",)
    put(tmp_path, "etc/netplan/50-cloud-init.yaml", "network:\n  ethernets:\n    ens3:\n      dhcp4: true\n")
    found = read(tmp_path)
    assert found.network_renderer == "netplan" and "50-cloud-init" in found.dhcp_interfaces


def test_it_is_read_again_only_after_a_while(tmp_path: Path) -> None:
    facts = BootFacts(tmp_path)
    assert facts.now().network_renderer == ""
    put(tmp_path, "usr/sbin/NetworkManager")
    assert facts.now().network_renderer == ""
    assert BootFacts(tmp_path).now().network_renderer == "networkmanager"
