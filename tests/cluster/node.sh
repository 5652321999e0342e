# Nodes: namespaces with links between them, then containerd, kubelet and kube-proxy inside.
# shellcheck shell=bash

# Limits of the whole machine that kubelet changes; `down` puts them back.
SYSCTLS=(vm.overcommit_memory kernel.panic kernel.panic_on_oops)

node_namespaces() { # NUMBER
  local n=$1 dir=$RUN/node-$1 parent pid name i
  node_pid "$n" >/dev/null && return 0
  mkdir -p "$dir"/{log,cni/conf,cni/bin,cni/state,kubelet,containerd,agent}
  rm -f "$dir"/*.pid
  [ -e "$RUN/sysctls" ] || for name in "${SYSCTLS[@]}"; do echo "$name=$(sysctl -n "$name")"; done >"$RUN/sysctls"
  setsid unshare --net --mount --pid --ipc --uts --fork --mount-proc --propagation private -- bash -c '
    hostname "$2"; mount --make-rshared /
    trap : CHLD TERM
    while :; do sleep 1000000 & wait $!; done' bash "$NAME" "node-$n" >"$dir/log/init.log" 2>&1 </dev/null &
  parent=$!
  await 5 "process of node-$n" "$dir/log/init.log" pgrep -P $parent
  pgrep -P $parent | head -1 >"$dir/pid"
  pid=$(cat "$dir/pid")
  # Its own /run, and the folders of CNI, kubelet and the agent at the places where everyone expects them.
  inside "$n" sh -ec '
    ip link set lo up
    echo 1 >/proc/sys/net/ipv4/ip_forward
    [ ! -d /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
    mount -t tmpfs tmpfs /run; mkdir -p /run/netns /run/lock
    mount -t tmpfs tmpfs /var/log
    while read -r from to; do mkdir -p "$to"; mount --bind "$1/$from" "$to"; done <<END
cni/conf /etc/cni/net.d
cni/bin /opt/cni/bin
cni/state /var/lib/cni
kubelet /var/lib/kubelet
agent /var/lib/culvert
END' sh "$dir"
  link_node "$n" "$pid"
  for i in $(nodes_up); do
    [ "$i" != "$n" ] || continue
    route "$n" "$i"
    route "$i" "$n"
  done
}
link_node() { # NUMBER PID: a bridge on node-1 that has no uplink; the others are tied to it
  local n=$1 device=eth0
  if [ "$n" = 1 ]; then
    device=nodes0
    # The pair gives a bridge without members a carrier.
    inside 1 sh -ec 'ip link add nodes0 type bridge; ip link add carrier0 type veth peer name carrier1
      ip link set carrier0 master nodes0; ip link set carrier0 up; ip link set carrier1 up'
  else
    nsenter -t "$(node_pid 1)" -n sh -ec 'ip link add "to-$1" type veth peer name eth0 netns "$2"
      ip link set "to-$1" master nodes0 up' sh "$n" "$2"
  fi
  # The routes to services let a packet leave OUTPUT, where kube-proxy rewrites it.
  inside "$n" sh -ec 'ip link set "$1" up; ip addr add "$2/24" dev "$1"; ip route add "$3" dev "$1"' sh $device "$(node_ip "$n")" "$SERVICE_CIDR"
  [ -z "$IPV6" ] || inside "$n" sh -ec 'ip addr add "$2/64" dev "$1" nodad; ip -6 route add "$3" dev "$1"' sh $device "$(node_ip6 "$n")" "$SERVICE_CIDR6"
}
route() { # FROM TO
  inside "$1" ip route replace "$(pod_cidr "$2")" via "$(node_ip "$2")"
  [ -z "$IPV6" ] || inside "$1" ip -6 route replace "$(pod_cidr6 "$2")" via "$(node_ip6 "$2")"
}

# On cgroup v1 a folder in each hierarchy, on v2 one with the controllers that kubelet wants.
cgroups_of() { # NUMBER
  local top
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then echo "/sys/fs/cgroup/$NAME-$1"; return 0; fi
  for top in /sys/fs/cgroup/*/; do echo "$top$NAME-$1"; done
}
make_cgroups() { # NUMBER
  local dir file
  for dir in $(cgroups_of "$1"); do mkdir -p "$dir"; done
  if [ -e /sys/fs/cgroup/cgroup.subtree_control ]; then
    echo "+cpu +cpuset +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
  elif [ -d /sys/fs/cgroup/cpuset ]; then
    for file in cpus mems; do cat /sys/fs/cgroup/cpuset/cpuset.$file >"/sys/fs/cgroup/cpuset/$NAME-$1/cpuset.$file"; done
  fi
}

node_files() { # NUMBER
  local n=$1 dir=$RUN/node-$1 ranges routes pods=$POD_CIDR ips
  ranges="[{\"subnet\": \"$(pod_cidr "$n")\"}]" routes='{"dst": "0.0.0.0/0"}'
  if [ -n "$IPV6" ]; then
    ranges+=", [{\"subnet\": \"$(pod_cidr6 "$n")\"}]" routes+=', {"dst": "::/0"}' pods+=,$POD_CIDR6
  fi
  cp -u /usr/lib/cni/* "$dir/cni/bin/"
  # istio-cni adds itself to this file: an existing one stays.
  [ -e "$dir/cni/conf/10-pods.conflist" ] || cat >"$dir/cni/conf/10-pods.conflist" <<END
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [$ranges], "routes": [$routes]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
  cat >"$dir/containerd.toml" <<END
version = 2
root = "$dir/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$HUB/pause:lab"
  # Lower values need CAP_SYS_RESOURCE, which not every machine gives.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
END
  cat >"$dir/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(node_ip "$n")
authentication: {x509: {clientCAFile: $PKI/ca.crt}}
tlsCertFile: $PKI/node-$n.crt
tlsPrivateKeyFile: $PKI/node-$n.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$NAME-$n
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
resolvConf: $dir/resolv.conf
maxPods: 160
podPidsLimit: -1
# The images come from here only, and a full disk is the developer's business.
imageMinimumGCAge: 10000h
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%"}
nodeStatusUpdateFrequency: 5s
END
  : >"$dir/resolv.conf"
  cat >"$dir/kube-proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: $PKI/proxy.conf}
clusterCIDR: $pods
hostnameOverride: node-$n
oomScoreAdj: 0
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
# Tables of the whole machine are not this node's to change.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
END
}

node_daemons() { # NUMBER
  local n=$1 dir=$RUN/node-$1 ips
  ips=$(node_ip "$n")
  [ -z "$IPV6" ] || ips=$ips,$(node_ip6 "$n")
  node_files "$n"
  make_cgroups "$n"
  daemon "$n" containerd containerd --config "$dir/containerd.toml"
  await 20 containerd "$(log_of "$n" containerd)" inside "$n" ctr version
  import "$n" "$IMAGES"/*.tar
  daemon "$n" kubelet kubelet --config="$dir/kubelet.yaml" --kubeconfig="$PKI/node-$n.conf" --cert-dir="$PKI" \
    --hostname-override="node-$n" --node-ip="$ips" --node-labels="topology.kubernetes.io/region=lab,topology.kubernetes.io/zone=zone-$n"
  await 60 "ready node-$n" "$(log_of "$n" kubelet)" kube wait --for=condition=Ready "node/node-$n" --timeout=2s
  kube create clusterrolebinding lab-kube-proxy --clusterrole=system:node-proxier --user=system:kube-proxy || true
  daemon "$n" kube-proxy kube-proxy --config="$dir/kube-proxy.yaml"
  await 30 kube-proxy "$(log_of "$n" kube-proxy)" inside "$n" busybox wget -qO- http://127.0.0.1:10256/healthz
}

node_down() { # NUMBER
  local pid dir
  if pid=$(node_pid "$1"); then
    kill -KILL "$pid"
    await 15 "end of node-$1" - sh -c "! [ -d /proc/$pid ]"
  fi
  for dir in $(cgroups_of "$1"); do
    [ ! -d "$dir" ] || find "$dir" -depth -type d -exec rmdir {} + || true
  done
}
