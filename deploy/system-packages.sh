#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that the demo and the tests use, and says why when this machine cannot run them.
# Safe to run again: packages that are there are left alone.
set -euo pipefail

packages=(
  python3-venv python3-dev gcc pkg-config       # the virtual environment; libvirt-python is compiled against libvirt-dev
  libvirt-dev libvirt-daemon-system libvirt-clients
  qemu-system-x86 qemu-utils qemu-system-common # the guests; qemu-storage-daemon for qcow2
  clang llvm libbpf-dev libbpf1                 # the capture program and its loader
  mmdebstrap debian-archive-keyring             # the guest image (Ubuntu lacks Debian's keys)
  e2fsprogs xfsprogs btrfs-progs dosfstools     # file systems in the tests
  fio nbdkit libnbd-bin python3-libnbd rsync util-linux iproute2 kmod
  borgbackup                                    # a peer of the benches
  postgresql                                    # commits that have to survive, in the chaos tests
)

refuse() { printf 'failback: %s\n  what to do: %s\n' "$1" "$2" >&2; exit 1; }

[ "$(id -u)" = 0 ] || refuse "root is needed: capture, loop devices and virtual machines are kernel features" "run it with sudo"
[ "$(uname -s)" = Linux ] || refuse "this is not Linux" "use Debian 12 or 13, or Ubuntu 24.04"
[ "$(uname -m)" = x86_64 ] || refuse "the capture program is built for x86_64 so far, this machine is $(uname -m)" "use an x86_64 machine"
[ -r /sys/kernel/btf/vmlinux ] || refuse "this kernel has no BTF (/sys/kernel/btf/vmlinux)" "boot a distribution kernel of 5.17 or newer with CONFIG_DEBUG_INFO_BTF"
command -v apt-get >/dev/null || refuse "apt-get is not here" "use Debian 12 or 13, or Ubuntu 24.04, or install by hand: ${packages[*]}"

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
