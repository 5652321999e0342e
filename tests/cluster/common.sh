# Sourced by the other scripts: where things are, how a node is entered, how progress and failures are told.
# shellcheck shell=bash
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
target=${CARGO_TARGET_DIR:-target}
[[ $target = /* ]] || target=$ROOT/$target
CACHE=$target/cluster       # built once: programs, root file systems, images
BIN=$CACHE/bin
ROOTFS=$CACHE/rootfs
IMAGES=$CACHE/images
RUN=$CACHE/run              # of the cluster that is up; `down` removes it
PKI=$RUN/pki
export KUBECONFIG=$RUN/admin.conf

NODES=${NODES:-2}
IPV6=${IPV6-1}              # nothing: IPv4 alone
HUB=localhost/culvert-lab
SERVICE_CIDR=10.96.0.0/16
SERVICE_CIDR6=fd00:10:96::/112
POD_CIDR=10.244.0.0/16
POD_CIDR6=fd00:10:244::/48
API_IP=10.96.0.1
DNS_IP=10.96.0.10
node_ip() { echo "172.31.0.$1"; }
node_ip6() { echo "fd00:172:31::$1"; }
pod_cidr() { echo "10.244.$1.0/24"; }
pod_cidr6() { echo "fd00:10:244:$1::/64"; }
# Cgroups and the like of this checkout: several labs may be up on one machine.
NAME=culvert-$(printf %s "$RUN" | cksum | cut -d' ' -f1)

# A shell's SECONDS would do, were it not for the tenths.
now() { date +%s%N | cut -c1-12; }
START=$(now)
lasted() { local d=$(($(now) - $1)); printf '%d.%02d s' $((d / 100)) $((d % 100)); }
say() { printf '%s\n' "$*" >&2; }
fail() { say "cluster: $*"; exit 1; }

step() { # WHAT CMD...: run CMD, say how long it took; if it fails, say that with the end of what it wrote
  local what=$1 since log; shift
  since=$(now); log=$CACHE/log/${what//[^a-zA-Z0-9]/-}.log
  mkdir -p "$CACHE/log"
  # Not as a condition: `set -e` has to hold inside CMD.
  set +e; (set -e; "$@") >"$log" 2>&1 </dev/null; local result=$?; set -e
  if [ $result -ne 0 ]; then
    printf '  %9s  %s: FAILED\n' "$(lasted "$since")" "$what" >&2
    tail -n 30 "$log" | sed 's/^/    | /' >&2
    fail "$what failed; all it wrote: $log"
  fi
  printf '  %9s  %s\n' "$(lasted "$since")" "$what" >&2
}

await() { # SECONDS WHAT LOG CMD...: until CMD succeeds; LOG is the file (or -) whose end explains why it did not
  local limit=$1 what=$2 log=$3 i; shift 3
  for ((i = 0; i < limit * 5; i++)); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.2
  done
  say "no $what within $limit s"
  if [ "$log" != - ]; then say "end of $log:"; tail -n 15 "$log" >&2 || true; fi
  return 1
}

# A node is the first process of network, mount, pid, ipc and uts namespaces of its own. What runs inside ends with it.
node_pid() { # NUMBER
  local pid
  pid=$(cat "$RUN/node-$1/pid" 2>/dev/null) || return 1
  # Another process may have the number by now.
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q "$NAME node-$1 \$" && echo "$pid"
}
nodes_up() { local i; for i in 1 2 3 4; do node_pid $i >/dev/null && echo $i; done; return 0; }
inside() { # NUMBER CMD...
  local pid
  pid=$(node_pid "$1") || fail "node-$1 is not up (make cluster)"
  shift
  nsenter -t "$pid" -n -m -p -i -u -- env PATH="$BIN:$PATH" KUBECONFIG="$KUBECONFIG" "$@"
}
daemon() { # NUMBER NAME CMD...: start CMD inside the node unless it runs; log in run/node-N/log/NAME.log
  local n=$1 name=$2; shift 2
  # shellcheck disable=SC2016 # the inner shell expands it
  inside "$n" sh -c '
    pid=$1/$2.pid log=$1/log/$2.log; shift 2
    if [ -d "/proc/$(cat "$pid" 2>/dev/null || echo none)" ]; then exit 0; fi
    setsid "$@" >>"$log" 2>&1 </dev/null &
    echo $! >"$pid"' sh "$RUN/node-$n" "$name" "$@"
}
log_of() { echo "$RUN/node-$1/log/$2.log"; }
kube() { inside 1 "$BIN/kubectl" "$@"; }
