#!/bin/sh
# Install what orlop needs from the system and PATH does not have: the `system` rows of packaging/system-packages.txt.
#
# apt removes nothing and adds nothing that is only recommended. Without root or apt the command to run is named.
set -eu

list=$(dirname "$0")/../packaging/system-packages.txt
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

have() {
    case $1 in
    python3:*) python3 -c "import ${1#python3:}" 2>/dev/null ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

absent() {
    while read -r kind program package _; do
        if [ "$kind" = system ] && ! have "$program"; then echo "$package"; fi
    done <"$list"
}

packages=$(absent | sort -u | tr '\n' ' ')
if [ -n "$packages" ]; then
    install="apt-get install --yes --no-remove --no-install-recommends $packages"
    if ! command -v apt-get >/dev/null; then
        echo "setup: needed and not found: ${packages}(names of Debian packages); install them and run this again" >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "setup: needed and not found: ${packages}; run this as root: apt-get update && $install" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    # A foreign source that cannot be reached need not matter: the installation decides.
    apt-get update --quiet || true
    # shellcheck disable=SC2086 # one argument per package
    $install
fi

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: $(command -v python3) is $(python3 --version); orlop needs Python 3.11 or later" >&2
    exit 1
fi
