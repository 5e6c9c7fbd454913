#!/bin/sh
# The last removal stops the daemon, an upgrade does not. What it has made in the kernel
# stays, and pods go on talking, until "ripstop cleanup" is run, before this or by hand.
set -e
case "$1" in
remove | 0)
	if [ -d "$DPKG_ROOT/run/systemd/system" ]; then
		systemctl disable --now ripstopd.service || true
	fi
	;;
esac
