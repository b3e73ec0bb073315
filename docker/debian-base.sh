#!/bin/sh
# Make a bare Debian 12 image without a registry, as BASE_IMAGE: docker/debian-base.sh NAME (root)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates bookworm "$folder" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >/dev/null
tar -C "$folder" -c . | docker import - "$1"
