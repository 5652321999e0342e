# The Go programs, each group from a module of its own under go/, into target/cluster/bin.
# shellcheck shell=bash

# A group is built when a file of its module is newer than the mark of its last build.
built() { [ -e "$CACHE/built/$1" ] && [ -z "$(find "$HERE/go/$1" -newer "$CACHE/built/$1" -type f)" ]; }

go_build() { # MODULE ARGS...
  local module=$1; shift
  cd "$HERE/go/$module"
  GOFLAGS="-buildvcs=false -mod=readonly" "$GO" build -o "$BIN/" -ldflags "-s -w ${LDFLAGS:-}" "$@"
  touch "$CACHE/built/$module"
}
build_kubernetes() {
  local version minor
  version=$(cd "$HERE/go/kubernetes" && "$GO" list -m -f '{{.Version}}' k8s.io/kubernetes)
  minor=${version#v1.}
  local at=k8s.io/component-base/version
  # A module does not carry the version that the programs tell each other.
  LDFLAGS="-X $at.gitVersion=$version -X $at.gitMajor=1 -X $at.gitMinor=${minor%%.*}" go_build kubernetes tool
}
build_conformance() {
  cd "$HERE/go/conformance"
  GOFLAGS="-buildvcs=false -mod=readonly" "$GO" test -c -ldflags "-s -w" -o "$BIN/gateway-conformance" .
  touch "$CACHE/built/conformance"
}

build_all() {
  find_go
  mkdir -p "$BIN" "$CACHE/built"
  built kubernetes || step "build Kubernetes (first time: about 11 min on 2 cores)" build_kubernetes
  built coredns || step "build CoreDNS (about 1 min)" go_build coredns .
  built istio || step "build Istio (about 6 min)" go_build istio tool ./waypoint-istiod istio.io/istio/pilot/cmd/pilot-agent
}
module_dir() { (cd "$HERE/go/$1" && "$GO" list -m -f '{{.Dir}}' "$2"); }
