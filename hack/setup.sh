#!/usr/bin/env bash
# Installs what the demo and the tests need and is not there yet, on Debian 12 and its relatives. Quick when nothing is
# missing. Usage: hack/setup.sh
set -euo pipefail

# command:package, a command the package brings along
programs=(
  ip:iproute2 nginx:nginx-light curl:curl wrk:wrk iperf3:iperf3 redis-server:redis-server redis-cli:redis-tools
  socat:socat psql:postgresql-client setpriv:util-linux
  cc:build-essential pip3:python3-pip
)
PATH=$PATH:/usr/sbin:/sbin

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

missing=()
for pair in "${programs[@]}"; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
# Its programs are in no PATH.
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
if [ "${#missing[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null || { echo "setup: not installed: ${missing[*]}; apt-get is not here, install them another way" >&2; exit 1; }
  echo "setup: installing ${missing[*]}"
  as_root apt-get update -qq
  # Servers that come up by themselves would only be in the way: the demo starts its own.
  policy=/usr/sbin/policy-rc.d
  made=
  if [ ! -e "$policy" ]; then
    made=1
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
  fi
  trap '[ -z "$made" ] || as_root rm -f "$policy"' EXIT
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
  echo "setup: no cargo; install Rust from https://rustup.rs (rust-toolchain.toml names the version)" >&2
  exit 1
fi
