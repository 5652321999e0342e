//! What the kernel's connection tracking is told and asked: connections that were open before the rules came, and where
//! a redirected datagram was going.
//!
//! The first packet the kernel tracks of a connection decides its translation, also when that is its thousandth packet.
//! So connections opened before the rules would be redirected in mid-stream, to a socket that knows nothing of them, and
//! hang. Known to the kernel as established beforehand, they go on as they were.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;

use super::netlink::{AttrWriter, Header, Netlink, NetlinkError, Writer, find_attr, flag};

/// `SOCK_DIAG_BY_FAMILY`.
const GET_SOCKETS: u16 = 20;
/// `inet_diag_req_v2`.
const REQUEST_HEAD: usize = 56;
/// Bits of TCP states: all but TIME_WAIT (6), CLOSE (7) and LISTEN (10).
const OPEN_STATES: u32 = 0b1011_0011_1110;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// `IPCTNL_MSG_CT_NEW` of subsystem 1.
const NEW_ENTRY: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET`.
const GET_ENTRY: u16 = NEW_ENTRY | 1;
/// `nfgenmsg`: family, version, resource.
const HEAD: usize = 4;
/// Answers seen, assured, confirmed: `IPS_…`.
const STATUS: u32 = 0xe;
/// As long as the kernel keeps a silent established connection by default: five days.
const TIMEOUT_S: u32 = 432_000;
const STATE_ESTABLISHED: u8 = 3;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`, as value and mask: the kernel has not seen the window and must not guess it.
const LIBERAL: [u8; 2] = [0x08; 2];

/// `CTA_…`.
mod attr {
    pub(super) const ORIGINAL: u16 = 1;
    pub(super) const REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const PROTOCOL_STATE: u16 = 4;
    pub(super) const TIMEOUT: u16 = 7;
}

/// Makes the kernel track every open TCP connection of the namespace as established, untranslated. Those it tracks
/// already are left as they are.
///
/// Shape: how many were new to it. Errors: the kernel's, for instance without connection tracking over netlink.
pub(super) fn keep_open(netfilter: &mut Netlink) -> Result<usize, NetlinkError> {
    let mut sockets = Netlink::sockets()?;
    let mut kept = 0;
    for family in [2u8, 10] {
        let mut head = [0; REQUEST_HEAD];
        head[0] = family;
        head[1] = TCP;
        head[4..8].copy_from_slice(&OPEN_STATES.to_ne_bytes());
        let found = match sockets.dump(GET_SOCKETS, &head, |_| {}) {
            // A kernel without this family.
            Err(error) if error.errno() == Some(Errno::ENOENT) => continue,
            found => found?,
        };
        for (local, remote) in found.iter().filter_map(|body| ends(body)) {
            let seq = netfilter.next_seq();
            match netfilter.apply(&entry(seq, local, remote), seq) {
                Ok(()) => kept += 1,
                Err(error) if error.errno() == Some(Errno::EEXIST) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(kept)
}

/// Where a datagram was going that came from `client` to the socket at `local` of the current namespace, before a rule
/// redirected it; none when none did. Call it inside `NetNs::run`.
///
/// Redirected TCP connections tell it themselves (`SO_ORIGINAL_DST`), datagrams do not: their entry is looked up by its
/// answers, which go from `local` to `client`.
/// Errors: the kernel's, [`NetlinkError::Socket`] among them where the process may not open netlink sockets.
pub fn udp_destination(local: SocketAddr, client: SocketAddr) -> Result<Option<SocketAddr>, NetlinkError> {
    let mut netfilter = Netlink::netfilter()?;
    let head = [if local.is_ipv4() { 2 } else { 10 }, 0, 0, 0];
    let found = netfilter.find(GET_ENTRY, &head, |out| {
        out.nest(attr::REPLY, |out| write_tuple(out, UDP, local, client));
    });
    match found {
        Ok(body) => Ok(destination(body.get(HEAD..).unwrap_or_default()).filter(|to| *to != local)),
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the entry's first packet was going.
fn destination(entry: &[u8]) -> Option<SocketAddr> {
    let tuple = find_attr(entry, attr::ORIGINAL)?.value;
    let (ips, ports) = (find_attr(tuple, 1)?.value, find_attr(tuple, 2)?.value);
    let ip = match (find_attr(ips, 2), find_attr(ips, 4)) {
        (Some(v4), _) => IpAddr::from(<[u8; 4]>::try_from(v4.value).ok()?),
        (None, Some(v6)) => IpAddr::from(<[u8; 16]>::try_from(v6.value).ok()?),
        (None, None) => return None,
    };
    let port = u16::from_be_bytes(find_attr(ports, 3)?.value.try_into().ok()?);
    Some(SocketAddr::new(ip, port))
}

/// Local and remote end in an `inet_diag_msg`; none when it says neither, or for a socket without a peer.
fn ends(body: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let ip = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = body.get(at..at + 16)?.try_into().ok()?;
        match body.first()? {
            2 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?)),
            10 => Some(Ipv6Addr::from(bytes).to_canonical()),
            _ => None,
        }
    };
    let (local, remote) = (SocketAddr::new(ip(8)?, port(4)?), SocketAddr::new(ip(24)?, port(6)?));
    (local.is_ipv4() == remote.is_ipv4() && remote.port() != 0).then_some((local, remote))
}

/// The request for one entry.
fn entry(seq: u32, local: SocketAddr, remote: SocketAddr) -> Writer {
    let family = if local.is_ipv4() { 2 } else { 10 };
    let flags = flag::REQUEST | flag::ACK | flag::CREATE | flag::EXCLUSIVE;
    let mut out = Writer::default();
    out.message(Header { kind: NEW_ENTRY, flags, seq }, &[family, 0, 0, 0], |out| {
        out.nest(attr::ORIGINAL, |out| write_tuple(out, TCP, local, remote));
        out.nest(attr::REPLY, |out| write_tuple(out, TCP, remote, local));
        out.put_be32(attr::STATUS, STATUS);
        out.put_be32(attr::TIMEOUT, TIMEOUT_S);
        out.nest(attr::PROTOCOL_STATE, |out| {
            out.nest(1, |out| {
                out.put(1, &[STATE_ESTABLISHED]);
                out.put(4, &LIBERAL);
                out.put(5, &LIBERAL);
            });
        });
    });
    out
}

fn write_tuple(out: &mut AttrWriter<'_>, protocol: u8, from: SocketAddr, to: SocketAddr) {
    out.nest(1, |out| {
        for (kinds, ip) in [([1, 3], from.ip()), ([2, 4], to.ip())] {
            match ip {
                IpAddr::V4(ip) => out.put(kinds[0], &ip.octets()),
                IpAddr::V6(ip) => out.put(kinds[1], &ip.octets()),
            }
        }
    });
    out.nest(2, |out| {
        out.put(1, &[protocol]);
        out.put(2, &from.port().to_be_bytes());
        out.put(3, &to.port().to_be_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ends_are_read_for_both_families_and_mapped_addresses() {
        let message = |family: u8, local: [u8; 16], remote: [u8; 16]| {
            let mut body = vec![family, 1, 0, 0];
            body.extend([0x1f, 0x90, 0x9c, 0x40]);
            body.extend(local);
            body.extend(remote);
            body
        };
        let v4 = |last: u8| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&[10, 0, 0, last]);
            bytes
        };
        let mapped = |last| std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets();
        let v6 = |last| Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last).octets();
        for (body, want) in [
            (message(2, v4(1), v4(2)), ["10.0.0.1:8080", "10.0.0.2:40000"]),
            (message(10, mapped(1), mapped(2)), ["10.0.0.1:8080", "10.0.0.2:40000"]),
            (message(10, v6(1), v6(2)), ["[fd77::1]:8080", "[fd77::2]:40000"]),
        ] {
            assert_eq!(ends(&body), Some((want[0].parse().unwrap(), want[1].parse().unwrap())));
        }
        assert_eq!(ends(&message(1, v4(1), v4(2))), None);
        assert_eq!(ends(&message(10, mapped(1), v6(2))), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            ends(&bytes);
        }
    }
}
