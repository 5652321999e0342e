//! The configuration of one sidecar.

use super::Variant;
use crate::bench::mode::certificates::Material;
use crate::bench::mode::{HTTP_PORT, redirect};

/// Whose sidecar it is and whom it talks to.
#[derive(Clone, Debug)]
pub(super) struct Sidecar<'a> {
    /// Name of the pod.
    pub(super) name: &'a str,
    /// SPIFFE identity of the only peer it connects to, and of the only one it lets in.
    pub(super) peer: &'a str,
    /// Its certificate.
    pub(super) material: &'a Material,
    pub(super) variant: Variant,
}

/// The bootstrap file's text.
pub(super) fn text(sidecar: &Sidecar<'_>) -> String {
    let (outbound, inbound, between) = match sidecar.variant {
        Variant::Http2 => (OUTBOUND_HTTP, INBOUND_HTTP, "http2_protocol_options"),
        Variant::Http1 => (OUTBOUND_HTTP, INBOUND_HTTP, "http_protocol_options"),
        // No listener and no chain for the HTTP port: it takes the way of all others.
        Variant::Tcp => ("", "", "http_protocol_options"),
    };
    let alpn = if between == "http2_protocol_options" { "h2" } else { "http/1.1" };
    let rbac = format!(
        "{{action: ALLOW, policies: {{peer: {{permissions: [{{any: true}}], \
         principals: [{{authenticated: {{principal_name: {{exact: {:?}}}}}}}]}}}}}}",
        sidecar.peer
    );
    // Includes first: they have placeholders of their own.
    let mut text = SIDECAR.replace("@OUTBOUND_HTTP@\n", outbound).replace("@INBOUND_HTTP@\n", inbound);
    for (key, value) in [
        ("@NAME@", sidecar.name),
        ("@HTTP_PORT@", &HTTP_PORT.to_string()),
        ("@MARK@", &redirect::mark().to_string()),
        ("@HTTP@", &format!("{{{between}: {{}}}}")),
        ("@TLS_CLIENT_TCP@", &client(sidecar, "istio")),
        ("@TLS_CLIENT_HTTP@", &client(sidecar, alpn)),
        ("@TLS_SERVER_TCP@", &server(sidecar, "istio")),
        ("@TLS_SERVER_HTTP@", &server(sidecar, "h2, http/1.1")),
        ("@RBAC@", &rbac),
    ] {
        text = text.replace(key, value);
    }
    text
}

/// Takes exactly the peer's identity for the server's.
fn client(sidecar: &Sidecar<'_>, alpn: &str) -> String {
    let tls = tls(sidecar, alpn, &format!("exact: {:?}", sidecar.peer));
    format!("{{\"@type\": {TLS}.UpstreamTlsContext, common_tls_context: {tls}}}")
}

/// Takes any identity of the trust domain for a client's; who is let in is decided by the RBAC filter, as in Istio.
fn server(sidecar: &Sidecar<'_>, alpn: &str) -> String {
    let tls = tls(sidecar, alpn, "prefix: \"spiffe://cluster.local/\"");
    format!(
        "{{\"@type\": {TLS}.DownstreamTlsContext, require_client_certificate: true, common_tls_context: {tls}}}"
    )
}

fn tls(sidecar: &Sidecar<'_>, alpn: &str, peer: &str) -> String {
    let Material { cert, key, root } = sidecar.material;
    format!(
        "{{alpn_protocols: [{alpn}], \
         tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, \
         tls_certificates: [{{certificate_chain: {{filename: {cert:?}}}, private_key: {{filename: {key:?}}}}}], \
         validation_context: {{trusted_ca: {{filename: {root:?}}}, \
         match_typed_subject_alt_names: [{{san_type: URI, matcher: {{{peer}}}}}]}}}}"
    )
}

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const SIDECAR: &str = include_str!("sidecar.yaml");
const OUTBOUND_HTTP: &str = include_str!("outbound_http.yaml");
const INBOUND_HTTP: &str = include_str!("inbound_http.yaml");

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variant: Variant) -> String {
        let path = |name: &str| format!("/tmp/{name}.pem").into();
        let material = Material { cert: path("cert"), key: path("key"), root: path("root") };
        text(&Sidecar {
            name: "client",
            peer: "spiffe://cluster.local/ns/default/sa/server",
            material: &material,
            variant,
        })
    }

    #[test]
    fn nothing_is_left_to_be_filled_in() {
        for variant in [Variant::Http2, Variant::Http1, Variant::Tcp] {
            let text = of(variant);
            let left: Vec<_> = text.lines().filter(|l| l.contains('@') && !l.contains("\"@type\"")).collect();
            assert!(left.is_empty(), "{variant:?}: {left:?}");
            assert!(text.contains("exact: \"spiffe://cluster.local/ns/default/sa/server\""));
        }
    }

    #[test]
    fn each_variant_speaks_its_own_protocol() {
        let managers = |variant| of(variant).matches("v3.HttpConnectionManager").count();
        assert_eq!([Variant::Http2, Variant::Http1, Variant::Tcp].map(managers), [2, 2, 0]);
        assert!(of(Variant::Http2).contains("{http2_protocol_options: {}}"));
        assert!(!of(Variant::Http1).contains("http2_protocol_options"));
    }
}
