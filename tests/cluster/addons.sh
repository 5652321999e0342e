# What runs in the cluster: DNS, the kinds of the Gateway API and of Istio, Istio's ambient profile.
# shellcheck shell=bash

cluster_dns() {
  kube apply -f "$HERE/manifests/coredns.yaml"
  kube -n kube-system rollout status deploy/coredns --timeout=60s
}

crds() {
  local gateway istio file
  gateway=$(module_dir conformance sigs.k8s.io/gateway-api)
  istio=$(module_dir istio istio.io/istio)
  for file in "$gateway"/config/crd/standard/gateway*.yaml; do kube apply --server-side --force-conflicts -f "$file"; done
  kube apply --server-side --force-conflicts -f "$istio/manifests/charts/base/files/crd-all.gen.yaml"
  kube wait --for=condition=Established crd --all --timeout=60s
}

istio() {
  local values=() value
  for value in profile=ambient components.ztunnel.enabled=false hub=$HUB tag=lab values.global.variant= values.global.imagePullPolicy=IfNotPresent \
    values.pilot.autoscaleEnabled=false values.pilot.env.AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY=true values.pilot.resources.requests.{cpu=10m,memory=64Mi} \
    values.cni.resources.requests.{cpu=10m,memory=32Mi}; do
    values+=(--set "$value")
  done
  # shellcheck disable=SC2086 # several arguments
  "$BIN/istioctl" manifest generate -d "$(module_dir istio istio.io/istio)/manifests" "${values[@]}" ${ISTIO_ARGS:-} >"$RUN/istio.yaml"
  # What users have before they take our agent, for the test that replaces it.
  # shellcheck disable=SC2086
  "$BIN/istioctl" manifest generate -d "$(module_dir istio istio.io/istio)/manifests" "${values[@]}" ${ISTIO_ARGS:-} \
    --set=components.{base,pilot,cni}.enabled=false --set=components.ztunnel.enabled=true >"$RUN/ztunnel-chart.yaml"
  kube create namespace istio-system || true
  kube apply --server-side --force-conflicts -f "$RUN/istio.yaml"
  rollout deploy/istiod
  rollout ds/istio-cni-node
}
# The kustomize base that users apply; only the image's name is another.
our_agent() {
  kube apply -k "$HERE/manifests/agent"
  rollout ds/ztunnel
}
rollout() { # OBJECT in istio-system: wait; if it takes too long, show what its pods say
  kube -n istio-system rollout status "$1" --timeout=120s && return 0
  kube -n istio-system get pods -o wide
  kube -n istio-system get events --sort-by=.lastTimestamp | tail -8
  kube -n istio-system logs "$1" --all-containers --tail=15 --prefix
  return 1
}
