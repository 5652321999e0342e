//! Addresses of workloads that are host names, as the agent's own name servers have them.
//!
//! Answers are kept as long as they say, failures for a moment. Asked on the runtime of who wants to know, in the agent's
//! own network namespace; nobody waits for another's question.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use culvert_common::dns::{self, Family};
use culvert_common::net::datagram;
use culvert_common::net::socket::{self, DialOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::servers::{Hosts, Servers};
use super::udp;

/// How long the answer may take, of all servers together.
const LIMIT: Duration = Duration::from_secs(5);
/// Host names that are kept.
const KEPT_MAX: usize = 4096;
/// How long an answer is kept, whatever it says.
const KEPT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// How long it is kept that a name has no addresses.
const NONE_KEPT: Duration = Duration::from_secs(5);

/// Why the name of a destination led nowhere.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error("no ip addresses were resolved for {host}; does the name exist?")]
    NoAddress { host: Arc<str> },
    #[error("{host} was not resolved: {source}; do the name servers of the agent's resolv.conf answer?")]
    Failed { host: Arc<str>, source: Arc<io::Error> },
}

/// Until when, and the addresses; none where the name has none.
type Kept = (Instant, Arc<[IpAddr]>);

/// Resolves host names.
pub(crate) struct Resolver {
    servers: Servers,
    hosts: Hosts,
    mark: u32,
    kept: Mutex<HashMap<Arc<str>, Kept>>,
}

impl Resolver {
    pub(crate) fn new(mark: u32) -> Self {
        Self { servers: Servers::default(), hosts: Hosts::default(), mark, kept: Mutex::default() }
    }

    /// The addresses of both families that `host` has, at least one.
    ///
    /// **Errors**: it has none, or nobody can say. **Cancel safety**: dropping it forgets the answer.
    pub(crate) async fn addresses(&self, host: &Arc<str>) -> Result<Arc<[IpAddr]>, ResolveError> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok([ip].into());
        }
        let found = match self.kept(host) {
            Some(kept) => kept,
            None => {
                let hosts = self.hosts.find(host);
                if !hosts.is_empty() {
                    return Ok(hosts.into());
                }
                let asked = timeout(LIMIT, self.ask(host)).await;
                let failed =
                    |source| ResolveError::Failed { host: Arc::clone(host), source: Arc::new(source) };
                let (found, time) =
                    asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
                self.keep(host, &found, time);
                found
            }
        };
        if found.is_empty() { Err(ResolveError::NoAddress { host: Arc::clone(host) }) } else { Ok(found) }
    }

    fn kept(&self, host: &str) -> Option<Arc<[IpAddr]>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, found) = kept.get(host)?;
        (*until > Instant::now()).then(|| Arc::clone(found))
    }

    fn keep(&self, host: &Arc<str>, found: &Arc<[IpAddr]>, time: Duration) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if kept.len() >= KEPT_MAX {
            kept.retain(|_, (until, _)| *until > now);
        }
        if kept.len() >= KEPT_MAX {
            // Any of them: names are few, and one that is needed comes back.
            kept.clear();
        }
        kept.insert(Arc::clone(host), (now + time, Arc::clone(found)));
    }

    /// Asks for both families side by side; one of them is enough.
    async fn ask(&self, host: &str) -> io::Result<(Arc<[IpAddr]>, Duration)> {
        let (v4, v6) = tokio::join!(self.ask_for(host, Family::V4), self.ask_for(host, Family::V6));
        let (mut found, mut ttl, mut failed) = (Vec::new(), None::<u32>, None);
        for one in [v4, v6] {
            match one {
                Ok(told) => {
                    ttl = [ttl, told.ttl.filter(|_| !told.addresses.is_empty())].into_iter().flatten().min();
                    found.extend(told.addresses);
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if found.is_empty() => Err(error),
            // What is missing may be there soon.
            Some(_) => Ok((found.into(), KEPT.0)),
            None => {
                let time = ttl.map_or(NONE_KEPT, |ttl| Duration::from_secs(ttl.into()).clamp(KEPT.0, KEPT.1));
                Ok((found.into(), time))
            }
        }
    }

    async fn ask_for(&self, host: &str, family: Family) -> io::Result<dns::Told> {
        let query = dns::ask(culvert_common::crypto::random() as u16, host, family)
            .ok_or_else(|| io::Error::other("it is no host name"))?;
        let servers = self.servers.list();
        let limit = LIMIT / u32::try_from(servers.len().max(1)).unwrap_or(1);
        let mut failed = io::Error::other("resolv.conf names no server");
        for to in servers {
            match self.ask_server(to, &query, family, limit).await {
                Ok(told) => return Ok(told),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn ask_server(
        &self,
        to: SocketAddr,
        query: &[u8],
        family: Family,
        limit: Duration,
    ) -> io::Result<dns::Told> {
        let read = |reply: &[u8]| {
            dns::told(reply, family).ok_or_else(|| io::Error::other(format!("{to} says that it failed")))
        };
        let told = read(&udp::ask(datagram::connected(to, self.mark)?, query, limit).await?)?;
        if !told.is_cut {
            return Ok(told);
        }
        let whole = timeout(limit, self.ask_by_tcp(to, query)).await;
        match whole.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).and_then(|reply| read(&reply)) {
            Ok(whole) => Ok(whole),
            // Some are better than none.
            Err(_) if !told.addresses.is_empty() => Ok(told),
            Err(error) => Err(error),
        }
    }

    async fn ask_by_tcp(&self, to: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let options = DialOptions { mark: Some(self.mark), nodelay: true, ..DialOptions::default() };
        let made = socket::dial_socket(to, &options)?;
        let mut server = socket::connect(made, to, LIMIT).await.map_err(io::Error::other)?;
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        server.write_all(&[&length.to_be_bytes(), query].concat()).await?;
        let mut reply = vec![0; server.read_u16().await?.into()];
        server.read_exact(&mut reply).await?;
        let is_it = reply.starts_with(query.get(..2).unwrap_or_default()) && dns::answers(&reply, query);
        if is_it { Ok(reply) } else { Err(io::Error::other(format!("{to} answers something else"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver() -> Resolver {
        Resolver {
            servers: Servers::fixed(Vec::new()),
            hosts: Hosts::fixed("10.0.0.9 a b # c\n"),
            ..Resolver::new(0)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_is_kept_as_long_as_it_may_be() {
        let resolver = resolver();
        let host: Arc<str> = "db.example.org".into();
        let ips: Arc<[IpAddr]> = ["10.0.0.1".parse().unwrap()].into();
        assert!(matches!(resolver.addresses(&host).await, Err(ResolveError::Failed { .. })));
        resolver.keep(&host, &ips, Duration::from_secs(7));
        assert_eq!(resolver.addresses(&host).await.unwrap(), ips);
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(resolver.addresses(&host).await.is_err());
        resolver.keep(&host, &[].into(), NONE_KEPT);
        assert!(matches!(resolver.addresses(&host).await, Err(ResolveError::NoAddress { .. })));
        for n in 0..3 * KEPT_MAX {
            resolver.keep(&format!("host-{n}").into(), &ips, Duration::from_secs(60));
            assert!(resolver.kept.lock().unwrap().len() <= KEPT_MAX);
        }
    }

    #[tokio::test]
    async fn addresses_and_names_of_the_hosts_file_need_no_server() {
        let resolver = resolver();
        for (host, want) in [("10.1.2.3", "10.1.2.3"), ("fd00::1", "fd00::1"), ("B", "10.0.0.9")] {
            let found = resolver.addresses(&host.into()).await.unwrap();
            assert_eq!(found[..], [want.parse::<IpAddr>().unwrap()], "{host}");
        }
        assert!(resolver.addresses(&"c".into()).await.is_err());
    }
}
