# etcd, the API server, the controller manager and the scheduler, on node-1, with keys made here.
# shellcheck shell=bash

issue() { # NAME SUBJECT [SAN]: a key and a certificate of the cluster's CA
  openssl ecparam -name prime256v1 -genkey -noout -out "$PKI/$1.key"
  openssl req -new -key "$PKI/$1.key" -subj "$2" |
    openssl x509 -req -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 3650 -out "$PKI/$1.crt" \
      -extfile <(printf 'extendedKeyUsage=serverAuth,clientAuth\n%s\n' "${3:+subjectAltName=$3}")
}
kubeconfig() { # NAME FILE
  local file
  encoded() { for file in "$@"; do base64 -w0 <"$PKI/$file"; done; }
  jq -n --arg server "https://$(node_ip 1):6443" --arg ca "$(encoded ca.crt)" --arg crt "$(encoded "$1.crt")" --arg key "$(encoded "$1.key")" '
    {apiVersion: "v1", kind: "Config", "current-context": "lab",
     clusters: [{name: "lab", cluster: {server: $server, "certificate-authority-data": $ca}}],
     users: [{name: "lab", user: {"client-certificate-data": $crt, "client-key-data": $key}}],
     contexts: [{name: "lab", context: {cluster: "lab", user: "lab"}}]}' >"$2"
}
make_pki() {
  local i
  [ ! -e "$KUBECONFIG" ] || return 0
  mkdir -p "$PKI"
  openssl ecparam -name prime256v1 -genkey -noout -out "$PKI/ca.key"
  openssl req -x509 -new -key "$PKI/ca.key" -days 3650 -subj /CN=culvert-lab -out "$PKI/ca.crt"
  openssl genrsa -out "$PKI/accounts.key" 2048
  openssl rsa -in "$PKI/accounts.key" -pubout -out "$PKI/accounts.pub"
  issue apiserver /CN=kube-apiserver \
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$(node_ip 1),IP:$API_IP"
  issue to-kubelet /O=system:masters/CN=apiserver
  issue front-proxy /CN=front-proxy
  issue admin /O=system:masters/CN=admin
  issue controller-manager /CN=system:kube-controller-manager
  issue scheduler /CN=system:kube-scheduler
  issue proxy /CN=system:kube-proxy
  for i in controller-manager scheduler proxy; do kubeconfig $i "$PKI/$i.conf"; done
  for ((i = 1; i <= NODES; i++)); do
    issue "node-$i" "/O=system:nodes/CN=system:node:node-$i" "DNS:node-$i,IP:$(node_ip "$i")"
    kubeconfig "node-$i" "$PKI/node-$i.conf"
  done
  kubeconfig admin "$KUBECONFIG"
}

control_plane() {
  local services=$SERVICE_CIDR log
  [ -z "$IPV6" ] || services=$services,"$SERVICE_CIDR6"
  make_pki
  daemon 1 etcd etcd --data-dir "$RUN/etcd" --unsafe-no-fsync --log-level warn --logger zap \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
  daemon 1 kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
    --bind-address="$(node_ip 1)" --advertise-address="$(node_ip 1)" --service-cluster-ip-range="$services" \
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --client-ca-file="$PKI/ca.crt" \
    --kubelet-client-certificate="$PKI/to-kubelet.crt" --kubelet-client-key="$PKI/to-kubelet.key" \
    --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --proxy-client-cert-file="$PKI/front-proxy.crt" --proxy-client-key-file="$PKI/front-proxy.key" \
    --requestheader-client-ca-file="$PKI/ca.crt" --requestheader-allowed-names=front-proxy \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$PKI/accounts.pub" --service-account-signing-key-file="$PKI/accounts.key" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true
  log=$(log_of 1 kube-apiserver)
  await 90 "API server" "$log" kube get --raw /readyz
  daemon 1 kube-controller-manager kube-controller-manager --kubeconfig="$PKI/controller-manager.conf" \
    --authentication-kubeconfig="$PKI/controller-manager.conf" --authorization-kubeconfig="$PKI/controller-manager.conf" \
    --bind-address=127.0.0.1 --leader-elect=false --use-service-account-credentials=true \
    --service-account-private-key-file="$PKI/accounts.key" --root-ca-file="$PKI/ca.crt" \
    --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" --service-cluster-ip-range="$services"
  daemon 1 kube-scheduler kube-scheduler --kubeconfig="$PKI/scheduler.conf" --bind-address=127.0.0.1 --leader-elect=false \
    --authentication-kubeconfig="$PKI/scheduler.conf" --authorization-kubeconfig="$PKI/scheduler.conf"
  await 60 "default service account" "$(log_of 1 kube-controller-manager)" kube -n default get serviceaccount default
}
