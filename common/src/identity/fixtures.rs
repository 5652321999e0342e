//! What the tests of this folder share: directories, clocks, and a CA that issues anything.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::acceptance::Acceptance;
use super::ca::PrivateKey;
use super::workload::WorkloadCert;
use super::{EmbeddedCa, EmbeddedOptions, Issued};
use crate::types::{Clock, SpiffeId, SystemClock};

/// A path that does not exist yet; what is there at the end is removed.
pub(super) struct TempPath(PathBuf);

impl TempPath {
    pub(super) fn new() -> Self {
        Self(std::env::temp_dir().join(format!("culvert-identity-{:016x}", getrandom::u64().unwrap())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Tokio's clock, paused or not, as wall clock; can be set forward and back.
#[derive(Debug)]
pub(super) struct TestClock {
    start: Instant,
    ahead: AtomicI64,
}

impl TestClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), ahead: AtomicI64::new(0) })
    }

    /// Sets the clock this many seconds ahead of where it would be, or behind.
    pub(super) fn set_ahead(&self, seconds: i64) {
        self.ahead.store(seconds, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        at(self.ahead.load(Ordering::Relaxed)) + self.start.elapsed()
    }
}

/// A clock that stands at [`at`] 0.
#[derive(Debug)]
pub(super) struct Standing;

impl Clock for Standing {
    fn now(&self) -> SystemTime {
        at(0)
    }
}

/// The tests' present, in seconds relative to it.
pub(super) fn at(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(1_800_000_000 + seconds).unwrap())
}

pub(super) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// `spiffe://cluster.local/ns/shop/sa/<account>`.
pub(crate) fn shop(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account).unwrap()
}

/// An embedded CA for `cluster.local` with certificates of 1,000 s.
pub(super) fn embedded(dir: &TempPath, clock: Arc<dyn Clock>) -> EmbeddedCa {
    let options =
        EmbeddedOptions { ttl: Duration::from_secs(1_000), trust_domain: "cluster.local".into(), clock };
    EmbeddedCa::open_or_create(dir.path(), options).unwrap()
}

/// Certificates of one embedded CA for accounts in [`shop`]'s namespace, valid from now by the machine's clock.
pub(crate) fn live<const N: usize>(accounts: [&str; N]) -> [WorkloadCert; N] {
    let dir = TempPath::new();
    let ca = EmbeddedCa::open_or_create(dir.path(), EmbeddedOptions::new("cluster.local")).unwrap();
    accounts.map(|account| {
        let id = shop(account);
        WorkloadCert::new(&id, &ca.issue(&id).unwrap(), Arc::new(SystemClock), &Acceptance::default())
            .unwrap()
    })
}

/// Names and texts of the files of one more root, valid from `from` seconds after the tests' present.
pub(super) fn root_files(name: &str, from: i64) -> [(String, String); 2] {
    let key = KeyPair::generate().unwrap();
    let mut params = ca_params(name);
    params.not_before = at(from).into();
    let cert = params.self_signed(&key).unwrap();
    [(format!("{name}-cert.pem"), cert.pem()), (format!("{name}-key.pem"), key.serialize_pem())]
}

/// A file that only its owner can read.
pub(super) fn put(dir: &TempPath, name: &str, text: &str) {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// A CA that signs what no CA should.
pub(super) struct Pki {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) cert: CertificateDer<'static>,
}

/// A certificate with its key.
pub(super) struct Made {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: KeyPair,
}

/// A leaf to make: the good one of an identity, before a test spoils it.
pub(super) struct Leaf {
    pub(super) names: Vec<(u8, Vec<u8>)>,
    pub(super) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(super) validity: (i64, i64),
}

pub(super) const URI: u8 = 6;
pub(super) const DNS: u8 = 2;

impl Leaf {
    pub(super) fn of(uri: &str) -> Self {
        Self::named(vec![(URI, uri.as_bytes().to_vec())])
    }

    pub(super) fn named(names: Vec<(u8, Vec<u8>)>) -> Self {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        Self { names, usages: vec![ServerAuth, ClientAuth], validity: (-60, 3_600) }
    }

    fn params(&self) -> CertificateParams {
        let mut params = params(self.validity);
        params.extended_key_usages.clone_from(&self.usages);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if !self.names.is_empty() {
            let names = self.names.iter().flat_map(|(tag, name)| der(0x80 | tag, name)).collect::<Vec<u8>>();
            params.custom_extensions =
                vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], der(0x30, &names))];
        }
        params
    }

    pub(super) fn self_signed(&self) -> Made {
        let key = KeyPair::generate().unwrap();
        Made { chain: vec![self.params().self_signed(&key).unwrap().into()], key }
    }
}

impl Pki {
    pub(super) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        let cert = params.self_signed(&key).unwrap().into();
        Self { issuer: Issuer::new(params, key), cert }
    }

    /// A CA below this one.
    pub(super) fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        let cert = params.signed_by(&key, &self.issuer).unwrap().into();
        Self { issuer: Issuer::new(params, key), cert }
    }

    pub(super) fn sign(&self, leaf: &Leaf) -> Made {
        let key = KeyPair::generate().unwrap();
        Made { chain: vec![leaf.params().signed_by(&key, &self.issuer).unwrap().into()], key }
    }

    /// What a CA would have answered for `made`.
    pub(super) fn issued(&self, made: &Made) -> Issued {
        Issued {
            key: PrivateKey::from_pkcs8(made.key.serialized_der().to_vec()),
            chain: made.chain.clone(),
            roots: vec![self.cert.clone()],
            not_before: at(-60),
            not_after: at(3_600),
        }
    }

    /// A usable certificate of ours.
    pub(super) fn workload(&self, identity: &SpiffeId) -> WorkloadCert {
        let made = self.sign(&Leaf::of(&identity.to_string()));
        WorkloadCert::new(identity, &self.issued(&made), Arc::new(Standing), &Acceptance::default()).unwrap()
    }
}

fn params((start, end): (i64, i64)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = at(start).into();
    params.not_after = at(end).into();
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params((-3_600, 86_400));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// One DER element of less than 64 KiB.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    let mut out = vec![tag];
    match length {
        0..=127 => out.push(u8::try_from(length).unwrap()),
        _ => {
            out.push(0x82);
            out.extend(length.to_be_bytes());
        }
    }
    out.extend(content);
    out
}
