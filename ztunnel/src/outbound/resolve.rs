//! Addresses of destinations that are found by name, as the agent's own system resolves them. Decides nothing.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

/// How long the answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Addresses of one answer that are looked at.
const ADDRESSES_MAX: usize = 64;

/// Why the name of a destination led nowhere.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    #[error("no ip addresses were resolved for {host}; does the name exist?")]
    NoAddress { host: Arc<str> },
    #[error("{host} was not resolved: {source}; does the name exist, and what says the agent's resolv.conf?")]
    Failed { host: Arc<str>, source: io::Error },
    #[error(
        "{host} was not resolved within {LIMIT:?}; do the name servers of the agent's resolv.conf answer?"
    )]
    Timeout { host: Arc<str> },
}

/// The addresses that `host` has, at least one.
///
/// **Cancel safety**: dropping it forgets the answer.
pub(super) async fn addresses(host: &Arc<str>) -> Result<Vec<IpAddr>, ResolveError> {
    let name = || Arc::clone(host);
    let found: Vec<IpAddr> = match timeout(LIMIT, lookup_host((&**host, 0))).await {
        Ok(Ok(found)) => found.map(|addr| addr.ip().to_canonical()).take(ADDRESSES_MAX).collect(),
        Ok(Err(source)) => return Err(ResolveError::Failed { host: name(), source }),
        Err(_) => return Err(ResolveError::Timeout { host: name() }),
    };
    if found.is_empty() {
        return Err(ResolveError::NoAddress { host: name() });
    }
    Ok(found)
}

/// One of them at random, of the wanted family if there is one.
pub(super) fn one_of(addresses: &[IpAddr], is_v4: bool, pick: u64) -> Option<IpAddr> {
    let wanted = addresses.iter().filter(|ip| ip.is_ipv4() == is_v4);
    let count = wanted.clone().count() as u64;
    let index = |count: u64| Some(pick.checked_rem(count)? as usize);
    match index(count) {
        Some(n) => wanted.copied().nth(n),
        None => addresses.get(index(addresses.len() as u64)?).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_wanted_family_is_taken() {
        let ips = ["10.0.0.1", "fd00::1", "10.0.0.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let picked = |is_v4, pick| one_of(&ips, is_v4, pick).unwrap().to_string();
        assert_eq!([picked(true, 0), picked(true, 1), picked(true, 2)], ["10.0.0.1", "10.0.0.2", "10.0.0.1"]);
        assert_eq!(picked(false, 7), "fd00::1");
        let v4 = ips.get(..1).unwrap();
        assert_eq!(one_of(v4, false, 3), v4.first().copied(), "any is better than none");
        assert_eq!(one_of(&[], true, 0), None);
    }
}
