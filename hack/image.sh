#!/usr/bin/env bash
# Builds the node agent as a static program and packs it as a container image, without a Docker daemon or a registry.
# Usage: hack/image.sh [--arch amd64|arm64] [--tag NAME:TAG] [--profile dist] [--binary FILE] [--output FILE]
#
# The archive is one that `docker load`, `ctr images import`, `skopeo copy docker-archive:` and `crane push` read. The
# program is linked with all of glibc, whose allocator the agent's memory figures are of; arm64 on another machine needs the
# cross compiler, which Debian has as gcc-aarch64-linux-gnu and libc6-dev-arm64-cross.
set -euo pipefail
cd "$(dirname "$0")/.."

case $(uname -m) in x86_64) own=amd64 ;; aarch64) own=arm64 ;; *) own= ;; esac
arch=$own tag=culvert/ztunnel:latest profile=dist binary='' output=''
while [ $# -gt 0 ]; do
  [ $# -gt 1 ] || set -- usage "$@"
  case $1 in
    --arch) arch=$2 ;; --tag) tag=$2 ;; --profile) profile=$2 ;; --binary) binary=$2 ;; --output) output=$2 ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
  esac
  shift 2
done
fail() { echo "image: $*" >&2; exit 1; }
case $arch in
  amd64) target=x86_64-unknown-linux-gnu ;;
  arm64) target=aarch64-unknown-linux-gnu ;;
  *) fail "no architecture ${arch:-for $(uname -m)}: write amd64 or arm64" ;;
esac
for program in jq tar sha256sum; do command -v "$program" >/dev/null || fail "no $program: install it"; done
out=${CARGO_TARGET_DIR:-target}
output=${output:-$out/image/ztunnel-$arch.tar}

if [ -z "$binary" ]; then
  if [ "$arch" != "$own" ]; then
    command -v "${target%%-*}-linux-gnu-gcc" >/dev/null || fail "no ${target%%-*}-linux-gnu-gcc: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
    rustup target list --installed | grep -qx "$target" || rustup target add "$target"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
  fi
  # With --target these flags are the program's alone, not those of the build's own programs.
  RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" cargo build --locked --profile "$profile" --target "$target" -p ztunnel
  binary=$out/$target/${profile/#dev/debug}/ztunnel
fi
# A program that needs an interpreter or a library would not start: the image has nothing but it.
if readelf -lW "$binary" | grep -q INTERP || readelf -dW "$binary" | grep -q NEEDED; then fail "$binary is not static"; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root/usr/local/bin" "$root/etc" "$root/tmp" "$root/var/run/ztunnel" "$root/var/run/secrets/istio" \
  "$root/var/run/secrets/tokens" "$root/var/lib/culvert"
chmod 1777 "$root/tmp"
install -m 755 "$binary" "$root/usr/local/bin/ztunnel"
echo 'root:x:0:0:root:/:/usr/local/bin/ztunnel' >"$root/etc/passwd"
printf 'root:x:0:\nistio-proxy:x:1337:\n' >"$root/etc/group"
# Names are looked up as the pod's resolv.conf says, and in its hosts file first.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"

# The same input gives the same bytes: no owner, no time, one order.
pack() { tar --numeric-owner --owner=0 --group=0 --sort=name --mtime=@0 --format=ustar -C "$1" -cf "$2" "${@:3}"; }
image=$work/image
mkdir -p "$image" "$(dirname "$output")"
pack "$root" "$image/layer.tar" .
layer=$(sha256sum "$image/layer.tar" | cut -d' ' -f1)
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
jq -cn --arg arch "$arch" --arg layer "sha256:$layer" --arg version "$version" '{
  architecture: $arch, os: "linux",
  config: {
    Entrypoint: ["/usr/local/bin/ztunnel"], Cmd: ["proxy", "ztunnel"], WorkingDir: "/", User: "0:1337",
    Env: ["PATH=/usr/local/bin"],
    Labels: {"org.opencontainers.image.title": "culvert ztunnel", "org.opencontainers.image.version": $version,
      "org.opencontainers.image.licenses": "Apache-2.0"}},
  rootfs: {type: "layers", diff_ids: [$layer]},
  history: [{created_by: "hack/image.sh"}]}' >"$image/config.json"
config=$(sha256sum "$image/config.json" | cut -d' ' -f1)
mv "$image/config.json" "$image/$config.json"
jq -cn --arg config "$config.json" --arg tag "$tag" '[{Config: $config, RepoTags: [$tag], Layers: ["layer.tar"]}]' >"$image/manifest.json"
pack "$image" "$output" manifest.json "$config.json" layer.tar
echo "image: $tag for $arch, $(du -h "$output" | cut -f1), in $output"
