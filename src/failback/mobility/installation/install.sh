#!/bin/sh
# Installs the Failback mobility service from this bundle, without internet. See --help.
# Needs on the machine: python3 (3.11 or newer; Debian's python3-minimal + libpython3-stdlib do) and libbpf.so.1 (libbpf1).
set -eu

usage() {
    cat <<'EOF'
usage: install.sh [--server URL --ca-file FILE (--passphrase-file FILE | --token-file FILE)] [--root DIR] [--no-start]

  --server URL            the configuration server, e.g. https://cs.example:443
  --ca-file FILE          its CA certificate (PEM)
  --passphrase-file FILE  enrolment passphrase; or --token-file FILE with a one-time token
  --root DIR              install into a mounted image (by chroot) instead of this machine; implies --no-start
  --no-start              install and enable, start at the next boot

Files: /opt/failback (program), /etc/failback (configuration; an existing mobility.toml is kept),
/etc/systemd/system/failback-mobility.service, /var/lib/failback/mobility (identity, made at enrolment).
EOF
}

umask 022  # what root runs is root's to write, whatever the caller's umask
# A copy that nobody else can read, from its first byte on.
copy_secret() { rm -f "$2.new"; (umask 077; cp "$1" "$2.new"); mv -f "$2.new" "$2"; }
fail() { echo "install.sh: $*" >&2; exit 1; }

ROOT=/ START=yes SERVER='' CA='' PASSPHRASE='' TOKEN=''
while [ $# -gt 0 ]; do
    case "$1" in
        --root) ROOT=$2; START=no; shift 2 ;;
        --no-start) START=no; shift ;;
        --server) SERVER=$2; shift 2 ;;
        --ca-file) CA=$2; shift 2 ;;
        --passphrase-file) PASSPHRASE=$2; shift 2 ;;
        --token-file) TOKEN=$2; shift 2 ;;
        -h|--help) usage; exit 0 ;;
        *) usage >&2; fail "unknown argument $1" ;;
    esac
done
[ "$(id -u)" = 0 ] || fail "must be run as root"
case "$SERVER" in
    '') ;;
    *[!A-Za-z0-9.:/_[\]-]*) fail "--server: not a URL: $SERVER" ;;
    https://*) ;;
    *) fail "--server has to begin with https://" ;;
esac
HERE=$(cd "$(dirname "$0")" && pwd)
for file in "$CA" "$PASSPHRASE" "$TOKEN"; do
    [ -z "$file" ] || [ -r "$file" ] || fail "cannot read $file"
done

if [ "$ROOT" != / ]; then
    # The same script, inside the image, with everything it needs beside it.
    STAGE="$ROOT/var/tmp/failback-bundle"
    rm -rf "$STAGE"; mkdir -p "$ROOT/var/tmp"; mkdir -m 0700 "$STAGE"
    trap 'rm -rf "$STAGE"' EXIT
    cp -R "$HERE/." "$STAGE/"
    set -- --no-start
    [ -z "$SERVER" ] || set -- "$@" --server "$SERVER"
    for pair in "ca-file=$CA" "passphrase-file=$PASSPHRASE" "token-file=$TOKEN"; do
        name=${pair%%=*} file=${pair#*=}
        [ -n "$file" ] || continue
        copy_secret "$file" "$STAGE/$name"
        set -- "$@" "--$name" "/var/tmp/failback-bundle/$name"
    done
    chroot "$ROOT" /bin/sh /var/tmp/failback-bundle/install.sh "$@"
    exit 0
fi

PYTHON=$(command -v python3) || fail "python3 is missing: apt-get install python3-minimal libpython3-stdlib"
VERSION=$("$PYTHON" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
[ -d "$HERE/wheels/$VERSION" ] || fail "this bundle has no wheels for $VERSION, only for: $(ls "$HERE/wheels" | tr '\n' ' ')"
"$PYTHON" -c 'import ctypes; ctypes.CDLL("libbpf.so.1")' 2>/dev/null \
    || fail "libbpf.so.1 is missing: apt-get install libbpf1 (Debian 12 and 13, Ubuntu 22.04 and later), dnf install libbpf"

# Wheels are zip files: unpacked to one directory they need neither pip nor venv.
NEW=/opt/failback/lib.new
rm -rf "$NEW"; mkdir -p "$NEW" /opt/failback/bin
"$PYTHON" - "$NEW" "$HERE/wheels/$VERSION"/*.whl "$HERE"/wheels/any/*.whl <<'EOF'
import compileall, sys, zipfile
for wheel in sys.argv[2:]:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(sys.argv[1])
compileall.compile_dir(sys.argv[1], quiet=2, stripdir=sys.argv[1], prependdir="/opt/failback/lib")
EOF
rm -rf /opt/failback/lib.old
[ ! -d /opt/failback/lib ] || mv /opt/failback/lib /opt/failback/lib.old
mv "$NEW" /opt/failback/lib
rm -rf /opt/failback/lib.old
cat > /opt/failback/bin/failback <<EOF
#!$PYTHON -IB
import sys
sys.path.insert(0, "/opt/failback/lib")
from failback.__main__ import main
sys.exit(main())
EOF
chmod 0755 /opt/failback/bin/failback
/opt/failback/bin/failback --version

mkdir -p /etc/failback /etc/systemd/system/multi-user.target.wants
chmod 0755 /etc/failback
[ -z "$CA" ] || { cp "$CA" /etc/failback/ca.pem; chmod 0644 /etc/failback/ca.pem; }
[ -z "$PASSPHRASE" ] || copy_secret "$PASSPHRASE" /etc/failback/passphrase
[ -z "$TOKEN" ] || copy_secret "$TOKEN" /etc/failback/token
if [ ! -e /etc/failback/mobility.toml ]; then
    sed -e "${SERVER:+s|^url = .*|url = \"$SERVER\"|}" "$HERE/mobility.toml" > /etc/failback/mobility.toml.new
    if [ -n "$TOKEN" ] && [ -z "$PASSPHRASE" ]; then
        sed -i -e 's|^passphrase_file|# passphrase_file|' -e 's|^# token_file|token_file|' /etc/failback/mobility.toml.new
    fi
    mv /etc/failback/mobility.toml.new /etc/failback/mobility.toml
fi
cp "$HERE/failback-mobility.service" /etc/systemd/system/failback-mobility.service
ln -sf ../failback-mobility.service /etc/systemd/system/multi-user.target.wants/failback-mobility.service
if [ "$START" = yes ]; then
    [ -d /run/systemd/system ] || fail "installed, but systemd does not run here: start /opt/failback/bin/failback by other means"
    systemctl daemon-reload
    systemctl restart failback-mobility.service
    systemctl --no-pager --lines=0 status failback-mobility.service
fi
echo "failback mobility service is installed"
