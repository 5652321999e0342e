//! The agent's own name servers, as its resolv.conf has them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Servers that are tried; the resolver of the C library knows as many.
const SERVERS_MAX: usize = 3;
const PORT: u16 = 53;

/// Read again when the file changes.
#[derive(Debug)]
pub(super) struct Servers {
    path: PathBuf,
    known: Mutex<(Option<SystemTime>, Vec<SocketAddr>)>,
}

impl Default for Servers {
    fn default() -> Self {
        Self { path: "/etc/resolv.conf".into(), known: Mutex::default() }
    }
}

impl Servers {
    /// The servers in the order to try them. A file that cannot be read leaves those of before.
    pub(super) fn list(&self) -> Vec<SocketAddr> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = std::fs::metadata(&self.path).and_then(|about| about.modified()).ok();
        if changed.is_some()
            && known.0 != changed
            && let Ok(text) = std::fs::read_to_string(&self.path)
        {
            *known = (changed, servers(&text));
        }
        known.1.clone()
    }
}

fn servers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let ip = line.trim().strip_prefix("nameserver")?.split_whitespace().next()?;
        ip.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT))
    };
    text.lines().filter_map(address).take(SERVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_and_read_again() {
        let text = "# a comment\nsearch a.b\n nameserver 10.96.0.10 # kube-dns\nnameserver fd00::10\noptions ndots:5\n\
            nameserver fe80::1%eth0\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nnameservers\n";
        let want: Vec<SocketAddr> =
            ["10.96.0.10:53", "[fd00::10]:53", "10.0.0.1:53"].map(|addr| addr.parse().unwrap()).into();
        assert_eq!(servers(text), want);

        let path = std::env::temp_dir().join(format!("culvert-resolv-{}", std::process::id()));
        let all = Servers { path: path.clone(), known: Mutex::default() };
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
}
