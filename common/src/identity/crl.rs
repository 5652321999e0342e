//! Certificate revocation lists: read from a file, checked against a peer's whole chain.
//!
//! A list that was never readable closes: nobody can say who is revoked. One that becomes unreadable later leaves the last
//! good lists in force, with an alarm. A certificate that no list speaks of is not revoked, and an old list still counts,
//! with an alarm too: refusing a whole mesh because a list was not renewed in time would be the greater harm.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use super::peer::{PeerIdentityError, Role};
use crate::crypto;
use crate::grpc::Stamp;

/// Bytes of the file; a revoked certificate takes about 40.
const FILE_MAX: u64 = 16 << 20;
/// Lists in a file: one for each issuer.
const LISTS_MAX: usize = 100;

/// The lists of one file.
pub struct Revocation {
    path: PathBuf,
    /// `None` until the file was readable once.
    lists: ArcSwapOption<Vec<List>>,
    /// Grows with each change of `lists`.
    revision: AtomicU64,
    look: Mutex<Look>,
}

/// One list.
pub struct List {
    crl: CertRevocationList<'static>,
    /// Whose it is, for the log.
    issuer: String,
    /// When its issuer should have made the next one.
    next_update: Option<SystemTime>,
}

/// What was seen last.
#[derive(Default)]
struct Look {
    stamp: Option<Stamp>,
    problem: Option<String>,
    /// Issuers of the lists that are overdue.
    overdue: Vec<String>,
}

/// The lists cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// The file cannot be read.
    #[error("revocation lists in {} cannot be read ({cause}); is the volume mounted?", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The file is larger than any that is meant.
    #[error("revocation lists in {} have more than {FILE_MAX} bytes; is it the right file?", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// What is in it are no lists.
    #[error("{} holds no usable revocation lists ({seen}); write PEM blocks X509 CRL, or one list in DER", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        seen: String,
    },
}

/// How the lists stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationStatus {
    /// Lists in force.
    pub lists: usize,
    /// Those of them whose issuer should have made a newer one by now.
    pub overdue: usize,
    /// Why the file could not be read the last time.
    pub problem: Option<String>,
}

impl Revocation {
    /// The lists of `path`, PEM or DER. What is wrong with them is told in the log and by [`Revocation::status`].
    pub fn open(path: &Path) -> Self {
        let new = Self {
            path: path.to_owned(),
            lists: ArcSwapOption::empty(),
            revision: AtomicU64::new(0),
            look: Mutex::default(),
        };
        new.refresh();
        new
    }

    /// Looks whether the file has changed, and reads it if so; whether other lists are in force now. Blocks for the read.
    pub fn refresh(&self) -> bool {
        let stamp = Stamp::of(&self.path);
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        // A file that could not be used may be readable now without having changed: its rights, its volume.
        if look.problem.is_none() && stamp.is_some() && stamp == look.stamp {
            return false;
        }
        look.stamp = stamp;
        let problem = match read(&self.path).and_then(|bytes| parse(&self.path, &bytes)) {
            Ok(lists) => {
                let count = lists.len();
                self.lists.store(Some(lists.into()));
                self.revision.fetch_add(1, Ordering::Release);
                look.problem = None;
                tracing::info!(path = %self.path.display(), lists = count, "revocation lists in force");
                return true;
            }
            Err(error) => error.to_string(),
        };
        if look.problem.as_ref() != Some(&problem) {
            match self.lists.load().is_some() {
                true => tracing::error!(problem, "the revocation lists before stay in force"),
                false => tracing::error!(problem, "no peer is accepted until there are revocation lists"),
            }
        }
        look.problem = Some(problem);
        false
    }

    /// Grows when other lists have come into force.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// How the lists stand, as of the last look at their age.
    pub fn status(&self) -> RevocationStatus {
        let look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let lists = self.lists.load().as_ref().map_or(0, |lists| lists.len());
        RevocationStatus { lists, overdue: look.overdue.len(), problem: look.problem.clone() }
    }

    /// Looks which lists should have been followed by newer ones, and tells of changes. They still count.
    pub fn look_at_age(&self, now: SystemTime) {
        let lists = self.lists.load_full();
        let is_overdue = |list: &&List| list.next_update.is_some_and(|at| at < now);
        let overdue: Vec<_> = lists
            .iter()
            .flat_map(|all| all.iter())
            .filter(is_overdue)
            .map(|list| list.issuer.clone())
            .collect();
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        if look.overdue == overdue {
            return;
        }
        let path = self.path.display();
        if overdue.is_empty() {
            tracing::info!(%path, "the revocation lists are up to date again");
        } else {
            tracing::warn!(
                %path,
                issuers = ?overdue,
                "revocation lists are past their next update and still count: what was revoked since is not known; is the \
                 job that renews them running?"
            );
        }
        look.overdue = overdue;
    }

    /// Whether a chain that leads to `roots` holds a certificate that was revoked.
    ///
    /// **Errors**: it does, or it cannot be said: no lists yet, or a list that its issuer has not signed.
    pub(super) fn check(
        &self,
        (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        roots: &RootCertStore,
        now: UnixTime,
        role: Role,
    ) -> Result<(), PeerIdentityError> {
        let unknown = |cause: &str| PeerIdentityError::RevocationUnknown(cause.to_owned());
        let lists = self.lists.load_full();
        let lists = lists.ok_or_else(|| unknown("the revocation lists have never been readable"))?;
        let lists: Vec<_> = lists.iter().map(|list| &list.crl).collect();
        let options = RevocationOptionsBuilder::new(&lists)
            .map_err(|_| unknown("there is no revocation list"))?
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore)
            .build();
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let algorithms = crypto::provider().signature_verification_algorithms.all;
        let leaf = EndEntityCert::try_from(leaf).map_err(|error| unknown(&error.to_string()))?;
        match leaf.verify_for_usage(algorithms, &roots.roots, intermediates, now, usage, Some(options), None)
        {
            Ok(_) => Ok(()),
            Err(webpki::Error::CertRevoked) => Err(PeerIdentityError::Revoked),
            Err(error) => Err(unknown(&error.to_string())),
        }
    }
}

impl fmt::Debug for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocation").field("path", &self.path).finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CrlError> {
    let unreadable = |cause| CrlError::File { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(CrlError::TooLong { path: path.to_owned() });
    }
    Ok(bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<List>, CrlError> {
    let bad = |seen: String| CrlError::Content { path: path.to_owned(), seen };
    read_lists(bytes).map_err(bad)
}

/// The lists in a file's bytes, PEM or DER.
///
/// **Errors**: what is wrong with them.
pub fn read_lists(bytes: &[u8]) -> Result<Vec<List>, String> {
    const PEM: &[u8] = b"-----BEGIN";
    let list = |der: &[u8]| {
        let crl = OwnedCertRevocationList::from_der(der).map_err(|e| e.to_string())?;
        // Its age and issuer are told only: who reads the list for what it revokes has taken it.
        let told = CertificateRevocationList::from_der(der).ok().map(|(_, told)| told);
        let seconds = told.as_ref().and_then(|told| told.next_update()).map(|at| at.timestamp());
        let since = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let next_update = seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(since(seconds)));
        let issuer = told.map(|told| told.issuer().to_string()).unwrap_or_default();
        Ok::<_, String>(List { crl: CertRevocationList::Owned(crl), issuer, next_update })
    };
    if !bytes.windows(PEM.len()).any(|part| part == PEM) {
        return list(bytes).map(|one| vec![one]);
    }
    let mut lists = Vec::new();
    for der in CertificateRevocationListDer::pem_slice_iter(bytes) {
        lists.push(list(&der.map_err(|error| error.to_string())?)?);
        if lists.len() > LISTS_MAX {
            return Err(format!("more than {LISTS_MAX} lists"));
        }
    }
    if lists.is_empty() { Err("no list".to_owned()) } else { Ok(lists) }
}

#[cfg(test)]
mod tests;
