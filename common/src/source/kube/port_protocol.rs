//! What is spoken on a port, as its declaration says. Source: Istio, protocol selection.

use crate::model::l7::Protocol;

/// From `appProtocol`, else from the port's name, else from its number.
pub(super) fn of(app_protocol: Option<&str>, name: &str, port: u16) -> Protocol {
    match app_protocol {
        Some("kubernetes.io/h2c") => return Protocol::Http2,
        Some("kubernetes.io/ws") => return Protocol::Http1,
        Some("kubernetes.io/wss") => return Protocol::Tls,
        _ => {}
    }
    let text = app_protocol.unwrap_or(name).to_ascii_lowercase();
    if text.starts_with("grpc-web") {
        return Protocol::Http2;
    }
    named(text.split('-').next().unwrap_or("")).unwrap_or(match port {
        // Servers speak first on SMTP and MySQL; DNS and MongoDB are no HTTP either.
        25 | 53 | 3306 | 27017 => Protocol::Tcp,
        _ => Protocol::Unknown,
    })
}

/// The protocol of this name, in lower case; none if there is none.
pub(super) fn named(name: &str) -> Option<Protocol> {
    Some(match name {
        "http" | "http_proxy" => Protocol::Http1,
        "http2" | "grpc" | "grpc-web" => Protocol::Http2,
        "tcp" | "mongo" | "redis" | "mysql" | "hbone" => Protocol::Tcp,
        "tls" | "https" => Protocol::Tls,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_before_the_name_before_the_number() {
        use Protocol::{Http1, Http2, Tcp, Tls, Unknown};
        for (app_protocol, name, port, protocol) in [
            (None, "", 80, Unknown),
            (None, "web", 80, Unknown),
            (None, "http", 80, Http1),
            (None, "HTTP-web", 80, Http1),
            (None, "httpx", 80, Unknown),
            (None, "http2-web", 80, Http2),
            (None, "grpc", 80, Http2),
            (None, "grpc-web", 80, Http2),
            (None, "GRPC-Web-ui", 80, Http2),
            (None, "http_proxy", 80, Http1),
            (None, "tcp-db", 80, Tcp),
            (None, "mongo", 80, Tcp),
            (None, "redis", 80, Tcp),
            (None, "mysql", 80, Tcp),
            (None, "tls-x", 80, Tls),
            (None, "https", 80, Tls),
            (None, "", 25, Tcp),
            (None, "dns", 53, Tcp),
            (None, "", 3306, Tcp),
            (None, "", 27017, Tcp),
            (None, "http", 3306, Http1),
            (Some("http"), "tcp-db", 80, Http1),
            (Some("tcp"), "http", 80, Tcp),
            (Some("kubernetes.io/h2c"), "http", 80, Http2),
            (Some("kubernetes.io/ws"), "tcp", 80, Http1),
            (Some("kubernetes.io/wss"), "http", 80, Tls),
            (Some("example.com/own"), "http", 80, Unknown),
            (Some("GRPC"), "", 80, Http2),
        ] {
            assert_eq!(of(app_protocol, name, port), protocol, "{app_protocol:?} {name:?} {port}");
        }
    }
}
