#!/usr/bin/env bash
# What the agents cost: CPU of both agents per request (wrk against nginx through the tunnel, keep-alive), per connection and
# per GiB, and their memory; and in the same rounds what a pair of nginx TCP relays costs, without encryption, identity or
# policy. Two nodes, in namespaces of its own, removed at the end.
#
#   sudo hack/cost.sh [rounds] [seconds]       JSON lines on stdout
#
# Needs nginx with its stream module (Debian: nginx-light libnginx-mod-stream), wrk, iperf3, python3, iproute2.
set -euo pipefail
rounds=${1:-3} seconds=${2:-4}
bin=${ZTUNNEL:-$(dirname "$0")/../target/release/ztunnel}
tmp=$(mktemp -d) id=cost$$
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
done
mkdir "$tmp/mesh"
pod() {
    cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: cost, annotations: {culvert.dev/netns: /run/netns/$id-$1}}
spec: {nodeName: $2, serviceAccountName: $1}
status: {phase: Running, podIPs: [{ip: $3}]}
YAML
}
{
    echo 'apiVersion: v1
kind: Namespace
metadata: {name: cost, labels: {istio.io/dataplane-mode: ambient}}'
    pod client node1 10.99.0.1
    pod server node2 10.99.0.2
} >"$tmp/mesh/mesh.yaml"
nginx() { # namespace, name, configuration
    local module=/usr/lib/nginx/modules/ngx_stream_module.so
    {
        [ "$2" = web ] || echo "load_module $module;"
        echo "worker_processes 1; pid $tmp/$1-$2.pid; error_log $tmp/$1-$2.err; events { worker_connections 8192; } $3"
    } >"$tmp/$1-$2.conf"
    ns "$1" nginx -c "$tmp/$1-$2.conf" -e "$tmp/$1-$2.err"
}
web='http { access_log off; keepalive_requests 100000000;
  server { listen 8080 backlog=4096; location / { default_type text/plain; return 200 "a reply of 19 bytes"; } } }'
relay() { echo "stream { server { listen $1; proxy_pass $2; tcp_nodelay on; } }"; }
nginx server web "$web"
nginx node2 web "$web"
nginx node2 relay "$(relay 9000 127.0.0.1:8080)"
nginx node1 relay "$(relay 9000 10.99.0.4:9000)"
relays="$(pgrep -P "$(cat "$tmp/node1-relay.pid")") $(pgrep -P "$(cat "$tmp/node2-relay.pid")")"
ns server iperf3 -s -D -p 5201 -I "$tmp/iperf.pid"
for n in 1 2; do
    (exec ip netns exec "$id-node$n" "$bin" --config "$tmp/mesh" --node "node$n" --ca-dir "$tmp/ca" >"$tmp/node$n.log" 2>&1) &
    eval "pid$n=$!"
done
for n in 1 2; do
    for _ in $(seq 100); do ns "node$n" curl -sf -m1 localhost:15021/healthz/ready >/dev/null && break; sleep 0.05; done
done
agents="$pid1 $pid2"
cpu() { # process ids
    for p in "$@"; do cat /proc/"$p"/task/*/schedstat; done | awk '{s += $1} END {printf "%.0f", s}'
}
rss() { awk '/VmRSS/ {printf "%.1f", $2 / 1024}' "/proc/$1/status"; }
echo "{\"who\":\"culvert\",\"what\":\"idle\",\"rss_mib\":[$(rss "$pid1"),$(rss "$pid2")]}"
requests() { # who, name, connections, further wrk arguments
    local who=$1 name=$2 connections=$3 before after out n rate from=client to=10.99.0.2:8080 pids=$agents
    shift 3
    [ "$who" = culvert ] || { from=node1 to=127.0.0.1:9000 pids=$relays; }
    before=$(cpu $pids)
    out=$(ns "$from" wrk -t1 -c"$connections" -d"${seconds}s" "$@" "http://$to/")
    after=$(cpu $pids)
    n=$(awk '/requests in/ {print $1}' <<<"$out")
    rate=$(awk '/Requests\/sec/ {print $2}' <<<"$out")
    errors=$(grep 'Socket errors' <<<"$out" | xargs || true)
    echo "{\"who\":\"$who\",\"what\":\"$name\",\"cpu_us\":$(awk "BEGIN {printf \"%.1f\", ($after - $before) / 1000 / $n}"),\"per_second\":$rate,\"errors\":\"$errors\"}"
}
bulk() { # name, further iperf3 arguments
    local name=$1 before after bytes
    shift
    before=$(cpu $agents)
    bytes=$(ns client iperf3 -c 10.99.0.2 -t "$seconds" -J "$@" | python3 -c 'import json,sys; print(int(json.load(sys.stdin)["end"]["sum_received"]["bytes"]))')
    after=$(cpu $agents)
    echo "{\"who\":\"culvert\",\"what\":\"$name\",\"cpu_s_per_gib\":$(awk "BEGIN {printf \"%.2f\", ($after - $before) / 1e9 / ($bytes / 2^30)}"),\"gbit_per_second\":$(awk "BEGIN {printf \"%.1f\", $bytes * 8 / 1e9 / $seconds}")}"
}
for _ in $(seq "$rounds"); do
    for who in culvert relay; do
        requests $who c1 1
        requests $who c16 16
        requests $who c64 64
        requests $who churn 16 -H 'Connection: close'
    done
    bulk bulk1
    bulk bulk4 -P 4
    bulk bulk4-reverse -P 4 -R
done
echo "{\"who\":\"culvert\",\"what\":\"after\",\"rss_mib\":[$(rss "$pid1"),$(rss "$pid2")]}"
