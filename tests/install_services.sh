#!/usr/bin/env bash
# Install what some tests want beside Python, where that can be done unasked: Debian's PostgreSQL and
# chromium. Never fails: without them those tests are skipped, with the reason.
set -uo pipefail

missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null ||
    missing+=(postgresql)
command -v chromium >/dev/null || command -v chromium-browser >/dev/null ||
    command -v google-chrome >/dev/null || missing+=(chromium)

if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, tests that need it are skipped: ${missing[*]}" >&2
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# One after the other: where one is not to be had, the other may be.
apt-get update -qq >"$log" 2>&1 || true
for package in "${missing[@]}"; do
    if apt-get install -y -qq --no-install-recommends "$package" >>"$log" 2>&1; then
        echo "installed for the tests: $package" >&2
    else
        echo "could not be installed, tests that need it are skipped: $package" >&2
        tail -n 3 "$log" >&2
    fi
done
rm -f "$log"
exit 0
