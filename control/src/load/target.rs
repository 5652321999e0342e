//! Whom to ask, from a URL or an address.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;

use super::LoadError;

/// Whom to ask, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where connections go.
    pub to: SocketAddr,
    /// The `Host` header.
    host: String,
    /// The path, with its query.
    path: String,
}

impl Target {
    /// `path` of the server at `to`; the path begins with `/`.
    pub fn new(to: SocketAddr, path: &str) -> Self {
        Self { to, host: to.to_string(), path: path.to_owned() }
    }

    /// The bytes of one request.
    pub(super) fn request(&self, close: bool) -> Vec<u8> {
        let connection = if close { "Connection: close\r\n" } else { "" };
        format!("GET {} HTTP/1.1\r\nHost: {}\r\n{connection}\r\n", self.path, self.host).into_bytes()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.host, self.path)
    }
}

impl FromStr for Target {
    type Err = LoadError;

    /// Reads `http://HOST[:PORT][/PATH]`, or the same without `http://`; a name is looked up once, here.
    fn from_str(text: &str) -> Result<Self, LoadError> {
        parse(text).map_err(|wrong| LoadError::Target { text: text.to_owned(), wrong })
    }
}

fn parse(text: &str) -> Result<Target, String> {
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest,
        Some((scheme, _)) => return Err(format!("{scheme} is not spoken here, only http")),
        None => text,
    };
    let (authority, path) = match rest.find(['/', '?']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let path = path.split('#').next().unwrap_or("");
    // A path that began a line of its own would be another request.
    if let Some(bad) = rest.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("it has {bad:?} in it"));
    }
    if authority.is_empty() || authority.contains('@') {
        return Err("it names no host".to_owned());
    }
    let to = resolve(authority)?;
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok(Target { to, host: authority.to_owned(), path })
}

fn resolve(authority: &str) -> Result<SocketAddr, String> {
    if let Ok(to) = authority.parse() {
        return Ok(to);
    }
    let bare = authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(authority);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, 80));
    }
    let (name, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
    let port = port.parse().map_err(|_e| format!("{port:?} is no port"))?;
    let mut found = (name, port).to_socket_addrs().map_err(|e| format!("{name} was not found: {e}"))?;
    found.next().ok_or_else(|| format!("{name} has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_addresses_are_read() {
        for (text, to, request) in [
            (
                "http://192.0.2.1:8080/a?b=c",
                "192.0.2.1:8080",
                "GET /a?b=c HTTP/1.1\r\nHost: 192.0.2.1:8080\r\n\r\n",
            ),
            ("192.0.2.1:8080", "192.0.2.1:8080", "GET / HTTP/1.1\r\nHost: 192.0.2.1:8080\r\n\r\n"),
            ("192.0.2.1", "192.0.2.1:80", "GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n"),
            (
                "http://[2001:db8::1]:81/x#y",
                "[2001:db8::1]:81",
                "GET /x HTTP/1.1\r\nHost: [2001:db8::1]:81\r\n\r\n",
            ),
            ("http://[2001:db8::1]", "[2001:db8::1]:80", "GET / HTTP/1.1\r\nHost: [2001:db8::1]\r\n\r\n"),
            ("http://192.0.2.1:1?q", "192.0.2.1:1", "GET /?q HTTP/1.1\r\nHost: 192.0.2.1:1\r\n\r\n"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to, to.parse().unwrap(), "{text}");
            assert_eq!(String::from_utf8(target.request(false)).unwrap(), request, "{text}");
        }
        assert!("localhost:1/x".parse::<Target>().is_ok_and(|t| t.to.port() == 1 && t.host == "localhost:1"));
    }

    #[test]
    fn what_cannot_be_asked_is_told() {
        for (text, wrong) in [
            ("https://192.0.2.1/", "https is not spoken here"),
            ("", "it names no host"),
            ("http:///x", "it names no host"),
            ("192.0.2.1:99999", "\"99999\" is no port"),
            ("192.0.2.1:80/a b", "it has ' ' in it"),
            ("192.0.2.1:80/a\r\nX: y", "in it"),
            ("name.invalid:80", "name.invalid was not found"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(wrong), "{text:?}: {error}");
        }
    }
}
