//! The authority of an HBONE CONNECT: where the bytes want to go.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// `ip:port`, `[v6]:port` or `hostname:port`. Source: RFC 9113 §8.5, RFC 3986 §3.2.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// A literal address.
    Addr(SocketAddr),
    /// A service's host name and port; lower case.
    Host(Arc<str>, u16),
}

/// The text is no `ip:port`, `[v6]:port` or `hostname:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authority is no ip:port, [v6]:port or hostname:port")]
pub struct NotAnAuthority;

impl Authority {
    /// The port asked for.
    pub fn port(&self) -> u16 {
        match self {
            Self::Addr(addr) => addr.port(),
            Self::Host(_, port) => *port,
        }
    }
}

impl FromStr for Authority {
    type Err = NotAnAuthority;

    /// **Errors**: anything with user information, without a port, with port 0, with a zone, or a host name that DNS
    /// could not carry. An IPv4-mapped IPv6 address is refused: it would name one address in two ways.
    fn from_str(text: &str) -> Result<Self, NotAnAuthority> {
        let (host, port) = text.rsplit_once(':').ok_or(NotAnAuthority)?;
        if port.is_empty() || port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NotAnAuthority);
        }
        let port = port.parse().ok().filter(|p| *p != 0).ok_or(NotAnAuthority)?;
        if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            let ip: std::net::Ipv6Addr = v6.parse().map_err(|_| NotAnAuthority)?;
            return match ip.to_ipv4_mapped() {
                Some(_) => Err(NotAnAuthority),
                None => Ok(Self::Addr(SocketAddr::new(IpAddr::V6(ip), port))),
            };
        }
        if let Ok(ip) = host.parse::<std::net::Ipv4Addr>() {
            return Ok(Self::Addr(SocketAddr::new(IpAddr::V4(ip), port)));
        }
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let all_digits = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if host.len() > 253 || all_digits || !host.split('.').all(label) {
            return Err(NotAnAuthority);
        }
        Ok(Self::Host(host.to_ascii_lowercase().into(), port))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => write!(f, "{addr}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn authorities_are_parsed_strictly() {
        for good in ["10.0.0.1:80", "[fd00::5]:8080", "cart.shop.svc.cluster.local:80"] {
            assert_eq!(good.parse::<Authority>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            ":80",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:+80",
            "10.0.0.1: 80",
            "fd00::5:80",
            "[fd00::5]",
            "[fd00::5%eth0]:80",
            "[::ffff:10.0.0.1]:80",
            "u@10.0.0.1:80",
            "10.0.0:80",
            "010.0.0.1:80",
            "a..b:80",
            "a/b:80",
            "a b:80",
            "[10.0.0.1]:80",
            "0x7f000001:80x",
        ] {
            assert!(bad.parse::<Authority>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// No text makes the parser panic, and what it accepts prints as what it would accept again.
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,80}") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
            }
        }
    }
}
