//! What the agent's own resolver files say: its name servers and hosts. Read again when they change.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Servers that are tried; the resolver of the C library knows as many.
const SERVERS_MAX: usize = 3;
const PORT: u16 = 53;

/// A file as last read.
#[derive(Debug)]
struct Watched<T> {
    path: PathBuf,
    parse: fn(&str) -> T,
    known: Mutex<(Option<SystemTime>, T)>,
}

impl<T: Default> Watched<T> {
    fn new(path: &str, parse: fn(&str) -> T) -> Self {
        Self { path: path.into(), parse, known: Mutex::default() }
    }

    /// Looks at it. One that cannot be read stays as it was.
    fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = std::fs::metadata(&self.path).and_then(|about| about.modified()).ok();
        if changed.is_some()
            && known.0 != changed
            && let Ok(text) = std::fs::read_to_string(&self.path)
        {
            *known = (changed, (self.parse)(&text));
        }
        look(&known.1)
    }
}

/// Name servers of resolv.conf.
#[derive(Debug)]
pub(super) struct Servers(Watched<Vec<SocketAddr>>);

impl Default for Servers {
    fn default() -> Self {
        Self(Watched::new("/etc/resolv.conf", servers))
    }
}

impl Servers {
    /// In the order to try them.
    pub(super) fn list(&self) -> Vec<SocketAddr> {
        self.0.with(Vec::clone)
    }

    #[cfg(test)]
    pub(super) fn fixed(servers: Vec<SocketAddr>) -> Self {
        Self(Watched { known: Mutex::new((None, servers)), ..Watched::new("/nowhere", |_| Vec::new()) })
    }
}

/// Lines of the hosts file.
#[derive(Debug)]
pub(super) struct Hosts(Watched<Vec<(String, IpAddr)>>);

impl Default for Hosts {
    fn default() -> Self {
        Self(Watched::new("/etc/hosts", hosts))
    }
}

impl Hosts {
    /// All addresses of a name.
    pub(super) fn find(&self, host: &str) -> Vec<IpAddr> {
        let is_it = |(name, _): &&(String, IpAddr)| name.eq_ignore_ascii_case(host);
        self.0.with(|all| all.iter().filter(is_it).map(|(_, ip)| *ip).collect())
    }

    #[cfg(test)]
    pub(super) fn fixed(text: &str) -> Self {
        Self(Watched { known: Mutex::new((None, hosts(text))), ..Watched::new("/nowhere", hosts) })
    }
}

fn servers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let ip = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
        ip.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT))
    };
    text.lines().filter_map(address).take(SERVERS_MAX).collect()
}

fn hosts(text: &str) -> Vec<(String, IpAddr)> {
    let mut all = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        if let Some(ip) = words.next().and_then(|ip| ip.parse().ok()) {
            all.extend(words.map(|name| (name.to_owned(), ip)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_and_read_again() {
        let text = "# a comment\nsearch a.b\n nameserver 10.96.0.10 # kube-dns\nnameserver fd00::10\noptions ndots:5\n\
            nameserver fe80::1%eth0\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nnameservers 10.0.0.3\n";
        let want: Vec<SocketAddr> =
            ["10.96.0.10:53", "[fd00::10]:53", "10.0.0.1:53"].map(|addr| addr.parse().unwrap()).into();
        assert_eq!(servers(text), want);
        for (text, want) in [
            ("", &[][..]),
            ("search a.b\noptions ndots:5\n", &[]),
            ("options rotate timeout:1\nnameserver fd00::10\nnameserver\nnameserver x", &["[fd00::10]:53"]),
        ] {
            let told: Vec<_> = servers(text).iter().map(ToString::to_string).collect();
            assert_eq!(told, want, "{text}");
        }

        let path = std::env::temp_dir().join(format!("culvert-resolv-{}", std::process::id()));
        let all = Servers(Watched { path: path.clone(), ..Watched::new("", servers) });
        assert!(all.list().is_empty());
        std::fs::write(&path, "nameserver 10.0.0.1").unwrap();
        assert_eq!(all.list().len(), 1);
        std::fs::write(&path, text).unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(9);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(all.list(), want);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(all.list(), want, "those of before");
    }

    #[test]
    fn hosts_are_found_by_any_of_their_names() {
        let all =
            Hosts::fixed("127.0.0.1 localhost\n::1\tlocalhost ip6-localhost # loopback\nx y\n10.0.0.1 # z\n");
        assert_eq!(all.find("LocalHost"), ["127.0.0.1", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert!(all.find("loopback").is_empty() && all.find("y").is_empty() && all.find("z").is_empty());
    }
}
