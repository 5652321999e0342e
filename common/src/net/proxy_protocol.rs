//! The header by which an application learns of the connection behind its own. Pure.
//!
//! **Source**: The PROXY protocol, version 2, §2.2; type 0xD0 is Istio's.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::types::SpiffeId;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// Type of the element that holds the source's identity as text.
const IDENTITY: u8 = 0xd0;

/// The header of a connection from `source` to `destination`, with the identity that the source has proven.
///
/// **Shape**: up to 833 bytes. If only one of the addresses is IPv6, the other is written as an IPv4-mapped one.
pub fn header(source: SocketAddr, destination: SocketAddr, identity: &SpiffeId) -> Vec<u8> {
    let identity = identity.to_string();
    let mut body = Vec::with_capacity(64 + identity.len());
    let family = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            body.extend_from_slice(&source.octets());
            body.extend_from_slice(&destination.octets());
            TCP_OVER_IPV4
        }
        (source, destination) => {
            body.extend_from_slice(&as_v6(source).octets());
            body.extend_from_slice(&as_v6(destination).octets());
            TCP_OVER_IPV6
        }
    };
    body.extend_from_slice(&source.port().to_be_bytes());
    body.extend_from_slice(&destination.port().to_be_bytes());
    // An identity is of bounded length, far below what the field can say.
    body.push(IDENTITY);
    body.extend_from_slice(&u16::try_from(identity.len()).unwrap_or(0).to_be_bytes());
    body.extend_from_slice(identity.as_bytes());

    let mut header = Vec::with_capacity(16 + body.len());
    header.extend_from_slice(&SIGNATURE);
    header.extend_from_slice(&[VERSION_AND_COMMAND, family]);
    header.extend_from_slice(&u16::try_from(body.len()).unwrap_or(0).to_be_bytes());
    header.append(&mut body);
    header
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn of(source: &str, destination: &str) -> String {
        let id = SpiffeId::new("td", "web", "a").unwrap();
        hex(&header(source.parse().unwrap(), destination.parse().unwrap(), &id))
    }

    const START: &str = "0d0a0d0a000d0a515549540a";
    /// Of `spiffe://td/ns/web/sa/a`, up to the scheme.
    const IDENTITY: &str = "d00017737069666665";

    fn check(source: &str, destination: &str, want: &str) {
        let rest = "3a2f2f74642f6e732f7765622f73612f61";
        assert_eq!(
            of(source, destination),
            format!("{START}{want}{IDENTITY}{rest}"),
            "{source} {destination}"
        );
    }

    #[test]
    fn the_bytes_are_these() {
        let v4 = "2111".to_owned() + "0026" + "0a000001" + "0a600001" + "a0b1" + "0050";
        check("10.0.0.1:41137", "10.96.0.1:80", &v4);
        let v6 = "2121".to_owned()
            + "003e"
            + "fd000000000000000000000000000001"
            + "fd960000000000000000000000000001"
            + "a0b1"
            + "0050";
        check("[fd00::1]:41137", "[fd96::1]:80", &v6);
        let mixed = "2121".to_owned()
            + "003e"
            + "00000000000000000000ffff0a000001"
            + "fd960000000000000000000000000001"
            + "a0b1"
            + "0050";
        check("10.0.0.1:41137", "[fd96::1]:80", &mixed);
        let mixed = "2121".to_owned()
            + "003e"
            + "fd000000000000000000000000000001"
            + "00000000000000000000ffff0a600001"
            + "a0b1"
            + "0050";
        check("[fd00::1]:41137", "10.96.0.1:80", &mixed);
        // As a dual-stack socket reports them.
        check("[::ffff:10.0.0.1]:41137", "10.96.0.1:80", &v4);
    }

    #[test]
    fn the_longest_identity_fits() {
        let id = SpiffeId::new(&"t".repeat(255), &"n".repeat(253), &"s".repeat(253)).unwrap();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let header = header(at("[fd00::1]:1"), at("[fd00::2]:2"), &id);
        let said = usize::from(u16::from_be_bytes([header[14], header[15]]));
        assert_eq!((said + 16, said), (header.len(), 36 + 3 + id.to_string().len()));
        assert!(header.len() <= 833);
    }
}
