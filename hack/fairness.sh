#!/usr/bin/env bash
# What small requests keep of their rate beside bulk streams of the same pair of pods: keep-alive requests alone, beside 1 and
# 4 uploads, beside 1 and 4 downloads, and the same beside 50 readers that have stopped; through the agents, and directly
# between two namespaces in the same rounds. Two nodes, in namespaces of its own, removed at the end.
#
#   sudo hack/fairness.sh [rounds] [seconds] [connections of the requests]
#
# JSON lines on stdout, the shares of the rate alone (median of the rounds) on stderr at the end.
# Needs nginx, wrk, iperf3, python3, iproute2.
set -euo pipefail
rounds=${1:-3} seconds=${2:-4} connections=${3:-4}
bin=${ZTUNNEL:-$(dirname "$0")/../target/release/ztunnel}
tmp=$(mktemp -d) id=fair$$
ns() { ip netns exec "$id-$1" "${@:2}"; }
clean() {
    for n in client server node1 node2 wire; do
        ip netns pids "$id-$n" 2>/dev/null | xargs -r kill 2>/dev/null || true
        ip netns del "$id-$n" 2>/dev/null || true
    done
    wait 2>/dev/null
    rm -rf "$tmp"
}
trap clean EXIT
trap 'exit 1' INT TERM HUP
for n in wire node1 node2 client server; do ip netns add "$id-$n"; ip -n "$id-$n" link set lo up; done
ip -n "$id-wire" link add br0 type bridge
ip -n "$id-wire" link set br0 up
i=0
for n in client server node1 node2; do
    i=$((i + 1))
    ip -n "$id-$n" link add eth0 type veth peer name "v$n" netns "$id-wire"
    ip -n "$id-wire" link set "v$n" master br0 up
    ip -n "$id-$n" link set eth0 up
    ip -n "$id-$n" addr add "10.99.0.$i/24" dev eth0
    # BBR's pacing distorts a path without a real network; cubic may not be allowed in a namespace.
    for cc in cubic reno; do ns "$n" sysctl -qw net.ipv4.tcp_congestion_control=$cc 2>/dev/null && break; done
    [ -z "${DELAY:-}" ] || ip netns exec "$id-$n" tc qdisc add dev eth0 root netem delay "$DELAY" limit 100000
done
mkdir "$tmp/mesh"
pod() {
    cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: fair, annotations: {culvert.dev/netns: /run/netns/$id-$1}}
spec: {nodeName: $2, serviceAccountName: $1}
status: {phase: Running, podIPs: [{ip: $3}]}
YAML
}
{
    echo 'apiVersion: v1
kind: Namespace
metadata: {name: fair, labels: {istio.io/dataplane-mode: ambient}}'
    pod client node1 10.99.0.1
    pod server node2 10.99.0.2
} >"$tmp/mesh/mesh.yaml"
for n in server node2; do
    cat >"$tmp/$n.conf" <<NGINX
worker_processes 1; pid $tmp/$n.pid; error_log $tmp/$n.err; events { worker_connections 8192; }
http { access_log off; keepalive_requests 100000000;
  server { listen 8080 backlog=4096; location / { default_type text/plain; return 200 "a reply of 19 bytes"; } } }
NGINX
    ns "$n" nginx -c "$tmp/$n.conf" -e "$tmp/$n.err"
    ns "$n" iperf3 -s -D -p 5201 -I "$tmp/iperf-$n.pid"
    ns "$n" python3 - <<'PY' &
import socket, threading
def pour(c):
    try:
        while True: c.sendall(bytes(65536))
    except OSError: pass
s = socket.create_server(("", 9000), backlog=256)
while True: threading.Thread(target=pour, args=(s.accept()[0],), daemon=True).start()
PY
done
for n in 1 2; do
    (exec ip netns exec "$id-node$n" "$bin" --config "$tmp/mesh" --node "node$n" --ca-dir "$tmp/ca" >"$tmp/node$n.log" 2>&1) &
    eval "pid$n=$!"
done
for n in 1 2; do
    for _ in $(seq 100); do ns "node$n" curl -sf -m1 localhost:15021/healthz/ready >/dev/null && break; sleep 0.05; done
done
rss() { awk '/VmRSS/ {printf "%.1f", $2 / 1024}' "/proc/$1/status"; }
stalled() { # from, to
    exec ip netns exec "$id-$1" python3 - "$2" <<'PY'
import socket, sys, time
held = [socket.create_connection((sys.argv[1], 9000)) for _ in range(50)]
time.sleep(3600)
PY
}
run() { # who, name, iperf3 arguments; none for no bulk
    local who=$1 name=$2 from=client to=10.99.0.2 bulk= rate p50 bytes=0
    shift 2
    [ "$who" = culvert ] || { from=node1 to=10.99.0.4; }
    if [ $# -gt 0 ]; then
        ns "$from" iperf3 -c "$to" -t $((seconds + 2)) -J "$@" >"$tmp/bulk.json" &
        bulk=$!
        sleep 1
    fi
    ns "$from" wrk -t1 -c"$connections" -d"${seconds}s" --latency "http://$to:8080/" >"$tmp/wrk.out"
    rate=$(awk '/Requests\/sec/ {print $2}' "$tmp/wrk.out")
    p50=$(awk '/ 50%/ {print $2}' "$tmp/wrk.out")
    if [ -n "$bulk" ]; then
        wait "$bulk" || true
        bytes=$(python3 -c 'import json,sys; print("%.2f" % (json.load(open(sys.argv[1]))["end"]["sum_received"]["bits_per_second"]/1e9))' "$tmp/bulk.json" || echo 0)
    fi
    echo "{\"who\":\"$who\",\"what\":\"$name\",\"connections\":$connections,\"per_second\":$rate,\"p50\":\"$p50\",\"bulk_gbit\":$bytes,\"rss_mib\":[$(rss "$pid1"),$(rss "$pid2")]}"
}
cpu() { cat /proc/"$pid1"/task/*/schedstat /proc/"$pid2"/task/*/schedstat | awk '{s += $1} END {printf "%.0f", s}'; }
bulk() { # who, name, iperf3 arguments
    local who=$1 name=$2 from=client to=10.99.0.2 before after gbit
    shift 2
    [ "$who" = culvert ] || { from=node1 to=10.99.0.4; }
    before=$(cpu)
    ns "$from" iperf3 -c "$to" -t "$seconds" -J "$@" >"$tmp/bulk.json" || true
    after=$(cpu)
    gbit=$(python3 -c 'import json,sys; print("%.2f" % (json.load(open(sys.argv[1]))["end"]["sum_received"]["bits_per_second"]/1e9))' "$tmp/bulk.json" || echo 0)
    echo "{\"who\":\"$who\",\"what\":\"$name\",\"per_second\":0,\"bulk_gbit\":$gbit,\"cpu_s_per_gib\":$(awk "BEGIN {printf \"%.2f\", ($after - $before) / 1e9 / ($gbit * $seconds / 8.59 + 1e-9)}")}"
}
all() { # suffix
    for who in culvert direct; do
        [ -z "${ONLY:-}" ] || [ "$ONLY" = $who ] || continue
        bulk $who "bulk-up$1"
        bulk $who "bulk-down$1" -R
        [ -z "${BULK_ONLY:-}" ] || continue
        run $who "alone$1"
        run $who "upload1$1" -P 1
        run $who "upload4$1" -P 4
        run $who "download1$1" -P 1 -R
        run $who "download4$1" -P 4 -R
    done
}
{
    for _ in $(seq "$rounds"); do all ""; done
    [ -z "${NO_STALLED:-}" ] || exit 0
    readers=()
    stalled client 10.99.0.2 & readers+=($!)
    stalled node1 10.99.0.4 & readers+=($!)
    sleep 3
    for _ in $(seq "$rounds"); do all "-stalled50"; done
    kill "${readers[@]}" 2>/dev/null || true
} | tee "$tmp/lines"
python3 - "$tmp/lines" >&2 <<'PY'
import collections, json, statistics, sys
rates, bulk = collections.defaultdict(list), collections.defaultdict(list)
for line in map(json.loads, filter(lambda l: l.startswith("{"), open(sys.argv[1]))):
    rates[line["who"], line["what"]].append(line["per_second"])
    bulk[line["who"], line["what"]].append(line["bulk_gbit"])
m = statistics.median
for (who, what), values in rates.items():
    alone = m(rates.get((who, "alone"), [0])) or 1
    print(f"{who:8} {what:22} {m(values):9.0f}/s {100 * m(values) / alone:6.1f} % of alone, bulk {m(bulk[who, what]):6.2f} Gbit/s")
PY
