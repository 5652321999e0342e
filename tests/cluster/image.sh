# Container images without a builder: a root file system out of this machine's programs and the libraries they load,
# packed as a docker archive, imported into the nodes' containerd.
# shellcheck shell=bash

libraries() { ldd "$1" 2>/dev/null | grep -o '/[^ ]*' || true; }

put() { # ROOT PROGRAM DEST: with what it is linked to
  local file
  install -D -m 755 "$2" "$1$3"
  for file in $(libraries "$2"); do
    [ -e "$1$file" ] || install -D -m 755 "$(readlink -f "$file")" "$1$file"
  done
}

rootfs() { # NAME [PROGRAM:DEST]...: a fresh directory with a shell and the programs; prints it
  local root=$ROOTFS/$1 pair applet dir; shift
  rm -rf "$root"
  mkdir -p "$root"/{etc,tmp,run,root,var,usr/bin,usr/sbin,usr/lib,usr/lib64,usr/local/bin}
  chmod 1777 "$root/tmp"
  for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$root/$dir"; done
  ln -s ../run "$root/var/run"
  install -m 755 "$(command -v busybox)" "$root/usr/bin/busybox"
  for applet in $(busybox --list | grep -vx busybox); do ln -s busybox "$root/usr/bin/$applet"; done
  printf '%s\n' 'root:x:0:0::/root:/bin/sh' 'istio-proxy:x:1337:1337::/tmp:/bin/sh' 'app:x:1338:1338::/tmp:/bin/sh' >"$root/etc/passwd"
  printf '%s\n' 'root:x:0:' 'istio-proxy:x:1337:' 'app:x:1338:' >"$root/etc/group"
  echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
  for pair in "$@"; do put "$root" "${pair%%:*}" "${pair#*:}"; done
  echo "$root"
}

pack() { # ROOT NAMES CONFIG-JSON: target/cluster/images/<first name>.tar; NAMES are separated by commas
  local root=$1 names=$2 config=$3 work digest
  mkdir -p "$IMAGES"
  work=$(mktemp -d "$CACHE/pack.XXXXXX")
  tar --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 -C "$root" -cf "$work/layer.tar" .
  digest=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
  jq -cn --argjson c "$config" --arg d "sha256:$digest" '{architecture: "amd64", os: "linux",
    config: ({Env: ["PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/opt/cni/bin"]} + $c),
    rootfs: {type: "layers", diff_ids: [$d]}}' >"$work/config.json"
  jq -cn --arg n "$names" '[{Config: "config.json", RepoTags: ($n | split(",")), Layers: ["layer.tar"]}]' >"$work/manifest.json"
  tar -C "$work" -cf "$IMAGES/$(image_file "$names")" config.json layer.tar manifest.json
  rm -rf "$work"
}
image_file() { local first=${1%%,*}; echo "${first//[\/:]/_}.tar"; }

import() { # NODE FILE...
  local node=$1 file; shift
  for file in "$@"; do
    inside "$node" ctr -n k8s.io images import --all-platforms "$file"
  done
}

base_images() {
  local root=$ROOTFS/pause
  mkdir -p "$root"
  cc -Os -static -s -o "$root/pause" "$HERE/pause.c"
  pack "$root" "$HUB/pause:lab" '{"Entrypoint": ["/pause"]}'
  pack "$(rootfs busybox)" "$HUB/busybox:lab" '{"Cmd": ["sh"]}'
  pack "$(rootfs coredns "$BIN/coredns:/usr/local/bin/coredns")" "$HUB/coredns:lab" '{"Entrypoint": ["/usr/local/bin/coredns"]}'
}

istio_images() {
  local root iptables name module
  pack "$(rootfs pilot "$BIN/pilot-discovery:/usr/local/bin/pilot-discovery")" "$HUB/pilot:lab" \
    '{"Entrypoint": ["/usr/local/bin/pilot-discovery"], "User": "1337:1337"}'
  root=$(rootfs install-cni "$BIN/install-cni:/usr/local/bin/install-cni" "$BIN/istio-cni:/opt/cni/bin/istio-cni" "$(command -v nft):/usr/sbin/nft")
  iptables=$(readlink -f "$(command -v iptables)")
  # One program with many names; it loads its matches and targets from a folder.
  put "$root" "$iptables" /usr/sbin/iptables
  for name in iptables-{save,restore} ip6tables{,-save,-restore} {iptables,ip6tables}-nft{,-save,-restore}; do
    ln -s iptables "$root/usr/sbin/$name"
  done
  name=$(dirname "$(find /usr/lib -name libxt_mark.so -o -name libxt_MARK.so | head -1)")
  for module in "$name"/*.so; do put "$root" "$module" "$module"; done
  pack "$root" "$HUB/install-cni:lab" '{"Cmd": ["/usr/local/bin/install-cni"]}'
  # Istio's test app: answers HTTP, gRPC, TCP; its client is called with `kubectl exec`.
  root=$(rootfs echo "$BIN/client:/usr/local/bin/client" "$BIN/server:/usr/local/bin/server")
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=echo \
    -addext subjectAltName=DNS:echo -keyout "$root/cert.key" -out "$root/cert.crt" 2>/dev/null
  chmod 644 "$root/cert.key"
  pack "$root" "$HUB/echo:lab$(conformance_names)" '{"Entrypoint": ["/usr/local/bin/server"], "User": "1338"}'
}
# The conformance suite's manifests use the test app under a public name.
conformance_names() {
  local dir
  dir=$(module_dir conformance sigs.k8s.io/gateway-api/conformance 2>/dev/null) || return 0
  grep -h 'image:' "$dir/mesh/manifests.yaml" | awk '{print $2}' | sort -u | sed 's/^/,/' | tr -d '\n'
}

# The agent's image as users build it, and the generator of the tests with Istio's test app.
agent_image() { # ZTUNNEL CULVERT [TAG]
  mkdir -p "$IMAGES"
  "$ROOT/hack/image.sh" --binary "$1" --tag "$HUB/ztunnel:${3:-lab}" --output "$IMAGES/$(image_file "$HUB/ztunnel:${3:-lab}")"
  [ -z "$2" ] || pack "$(rootfs tester "$2:/usr/local/bin/culvert" "$BIN/client:/usr/local/bin/client" "$BIN/server:/usr/local/bin/server")" \
    "$HUB/tester:lab" '{"Cmd": ["sleep", "1000000"]}'
}
