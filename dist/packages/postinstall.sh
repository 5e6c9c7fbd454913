#!/bin/sh
# A new package leaves it to the operator to start the daemon, who has settings to write
# first. An upgrade restarts one that runs, which loses no packet. In a root without
# systemd there is nobody to tell.
set -e
if [ -d "$DPKG_ROOT/run/systemd/system" ]; then
	systemctl daemon-reload || true
	systemctl try-restart --no-block ripstopd.service || true
fi
