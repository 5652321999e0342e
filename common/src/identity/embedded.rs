//! The embedded CA: roots in a local directory that the agents of one machine share.
//!
//! All roots are trusted and the newest signs. The directory is read again when it changes; what cannot be read or is no
//! root leaves the last good state. For a laptop, a demo or a test: in a cluster an agent must not hold the mesh's root.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;
use zeroize::Zeroize;

use crate::types::{Clock, SpiffeId, SystemClock};

use super::ca::{CaError, Issued, PrivateKey};
use super::peer;
use super::root_dir::{self, Print, RootFiles};

/// Life of a root.
const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates begin this long ago, for peers whose clock is a little behind.
const SKEW: Duration = Duration::from_secs(60);

/// A root that appears beside others signs only when it has been there for so long: by then all agents trust it.
const SIGNS_AFTER: Duration = Duration::from_secs(5);

/// Settings of the embedded CA.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Life of a workload's certificate.
    pub ttl: Duration,
    /// Trust domain: the root's organisation, and the only one in which identities are issued.
    pub trust_domain: Arc<str>,
    /// Clock by which certificates begin and end.
    pub clock: Arc<dyn Clock>,
}

impl EmbeddedOptions {
    /// Certificates of 24 hours in `trust_domain`, by the machine's clock.
    pub fn new(trust_domain: &str) -> Self {
        Self {
            ttl: Duration::from_secs(24 * 3600),
            trust_domain: trust_domain.into(),
            clock: Arc::new(SystemClock),
        }
    }
}

/// Certificate authority with its roots in a local directory.
pub struct EmbeddedCa {
    dir: PathBuf,
    options: EmbeddedOptions,
    current: Mutex<Current>,
}

/// What a certificate is to say beside its key.
struct Leaf<'a> {
    /// For errors.
    about: &'a str,
    name: SanType,
    usages: Vec<ExtendedKeyUsagePurpose>,
}

/// What [`Issued`] is but for the key.
struct Signed {
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// What was last read and could be used.
struct Current {
    /// Of the files that were looked at last, good or not.
    print: Print,
    is_bad: bool,
    /// The newest first.
    roots: Vec<Root>,
    /// The root that signs, by its certificate.
    signer: CertificateDer<'static>,
    /// Roots that are too new to sign, with the end of that.
    fresh: Vec<(CertificateDer<'static>, Instant)>,
}

struct Root {
    cert: CertificateDer<'static>,
    validity: (SystemTime, SystemTime),
    issuer: Option<Issuer<'static, KeyPair>>,
}

impl EmbeddedCa {
    /// Opens the roots in `dir`, or makes directory and root if there are none.
    ///
    /// Any number of processes may call this at once: all get the same root.
    ///
    /// **Shape**: `dir` has mode 0700 and this process's user; in it `root-key.pem` (P-256, PKCS#8, mode 0600) and
    /// `root-cert.pem`, and for each further root such a pair with names that start with `root-`; a certificate without a
    /// key is trusted and does not sign. Blocks for a few reads, and two synced writes the first time.
    /// **Errors**: directory or files that others could change or read, or that do not form a root valid now.
    pub fn open_or_create(dir: &Path, options: EmbeddedOptions) -> Result<Self, CaError> {
        let self_sign = |key: &KeyPair| root_params(&options)?.self_signed(key).map_err(CaError::SignRoot);
        let files = root_dir::open_or_create(dir, |key| self_sign(key).map(|cert| cert.pem()))?;
        let print = root_dir::print(dir)?;
        let roots = roots(files)?;
        let signer = signer(&roots, options.clock.now(), &[]);
        let signer = signer.ok_or_else(|| CaError::RootNotValid { path: dir.to_owned() })?.cert.clone();
        let current = Current { print, is_bad: false, roots, signer, fresh: Vec::new() };
        Ok(Self { dir: dir.to_owned(), options, current: Mutex::new(current) })
    }

    /// The certificate of the root that signs.
    pub fn root(&self) -> CertificateDer<'static> {
        self.current().signer.clone()
    }

    /// Looks whether the directory has changed; whether certificates issued from now on differ from those before, in who
    /// signs them or in whom they trust.
    ///
    /// A root that is added beside others is trusted at once and signs a few seconds later, when all agents trust it.
    ///
    /// **Shape**: blocks for a look at each file, and for reading them when they changed.
    /// **Errors**: what [`EmbeddedCa::open_or_create`] refuses; the last good state stays in use.
    pub fn refresh(&self, now: Instant) -> Result<bool, CaError> {
        let print = root_dir::print(&self.dir)?;
        let mut current = self.current();
        let mut is_changed = false;
        if current.is_bad || print != current.print {
            (current.print, current.is_bad) = (print, true);
            let mut roots = roots(root_dir::read_all(&self.dir)?)?;
            let wall = self.options.clock.now();
            if signer(&roots, wall, &[]).is_none() {
                return Err(CaError::RootNotValid { path: self.dir.clone() });
            }
            std::mem::swap(&mut current.roots, &mut roots);
            let before = roots;
            let is_known = |root: &&Root| before.iter().any(|old| old.cert == root.cert);
            let fresh: Vec<_> =
                current.roots.iter().filter(|r| !is_known(r)).map(|r| r.cert.clone()).collect();
            is_changed = !fresh.is_empty() || before.len() != current.roots.len();
            current.fresh.extend(fresh.into_iter().map(|cert| (cert, now + SIGNS_AFTER)));
            current.is_bad = false;
        }
        current.fresh.retain(|(_, until)| *until > now);
        let chosen = signer(&current.roots, self.options.clock.now(), &current.fresh).map(|r| r.cert.clone());
        if let Some(chosen) = chosen.filter(|chosen| *chosen != current.signer) {
            current.signer = chosen;
            is_changed = true;
        }
        Ok(is_changed)
    }

    /// A new key and its certificate.
    ///
    /// **Errors**: `id` is of another trust domain, the root is not valid now, no randomness.
    pub fn issue(&self, id: &SpiffeId) -> Result<Issued, CaError> {
        let name = self.name_of(id)?;
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue_named(&id.to_string(), name, usages)
    }

    /// A new key and its certificate for a server that is called by its host name, as a certificate service is.
    ///
    /// **Errors**: no host name, the root is not valid now, no randomness.
    pub fn issue_for_host(&self, host: &str) -> Result<Issued, CaError> {
        let failed = |source| CaError::Sign { id: host.to_owned(), source };
        let name = SanType::DnsName(Ia5String::try_from(host).map_err(failed)?);
        self.issue_named(host, name, vec![ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// The certificate for the key of a certificate signing request; what else it asks for is ignored.
    ///
    /// **Errors**: no request in PEM that its own key has signed, `id` is of another trust domain, the root is not valid now.
    pub fn sign(&self, id: &SpiffeId, request: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let name = self.name_of(id)?;
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|source| CaError::Request { id: id.clone(), source })?;
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = Leaf { about: &id.to_string(), name, usages };
        self.certify(leaf, &request.public_key).map(|signed| signed.chain)
    }

    fn name_of(&self, id: &SpiffeId) -> Result<SanType, CaError> {
        if id.trust_domain() != &*self.options.trust_domain {
            let trust_domain = self.options.trust_domain.to_string();
            return Err(CaError::TrustDomain { id: id.clone(), trust_domain });
        }
        let failed = |source| CaError::Sign { id: id.to_string(), source };
        Ok(SanType::URI(Ia5String::try_from(id.to_string()).map_err(failed)?))
    }

    fn issue_named(
        &self,
        about: &str,
        name: SanType,
        usages: Vec<ExtendedKeyUsagePurpose>,
    ) -> Result<Issued, CaError> {
        let failed = |source| CaError::Sign { id: about.to_owned(), source };
        let mut key = KeyPair::generate().map_err(failed)?;
        let signed = self.certify(Leaf { about, name, usages }, &key);
        let secret = PrivateKey::from_pkcs8(key.serialized_der().to_vec());
        key.zeroize();
        let Signed { chain, roots, not_before, not_after } = signed?;
        Ok(Issued { key: secret, chain, roots, not_before, not_after })
    }

    fn certify(&self, leaf: Leaf<'_>, key: &impl PublicKeyData) -> Result<Signed, CaError> {
        let now = self.options.clock.now();
        let current = self.current();
        let not_valid = || CaError::RootNotValid { path: self.dir.clone() };
        let root = signer(&current.roots, now, &current.fresh).ok_or_else(not_valid)?;
        let issuer = root.issuer.as_ref().ok_or_else(not_valid)?;
        // It never outlives the root.
        let (not_before, not_after) = (now - SKEW, (now + self.options.ttl).min(root.validity.1));
        let mut params = base_params(not_before, not_after)?;
        params.is_ca = IsCa::ExplicitNoCa;
        // The subject stays empty, which makes the name's extension critical.
        params.subject_alt_names = vec![leaf.name];
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = leaf.usages;
        let signed = params.signed_by(key, issuer);
        let signed = signed.map_err(|source| CaError::Sign { id: leaf.about.to_owned(), source })?;
        let roots = current.roots.iter().map(|root| root.cert.clone()).collect();
        Ok(Signed { chain: vec![signed.into()], roots, not_before, not_after })
    }

    /// A panic while it was held cannot leave the roots half changed: they are replaced as a whole.
    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks what was read; the newest first.
fn roots(files: Vec<RootFiles>) -> Result<Vec<Root>, CaError> {
    let keyless = files.first().map(|root| root_dir::keyless(&root.cert_path, root.key_path.clone()));
    let mut roots = files.into_iter().map(root).collect::<Result<Vec<_>, _>>()?;
    roots.sort_by(|a, b| b.validity.0.cmp(&a.validity.0).then_with(|| a.cert.as_ref().cmp(b.cert.as_ref())));
    roots.dedup_by(|a, b| a.cert == b.cert);
    match keyless {
        Some(keyless) if roots.iter().all(|root| root.issuer.is_none()) => Err(keyless),
        _ => Ok(roots),
    }
}

fn root(files: RootFiles) -> Result<Root, CaError> {
    let RootFiles { cert_path, key_path, cert, key } = files;
    let refuse = |seen: String| CaError::Content { path: cert_path.clone(), seen };
    let parsed = peer::parse(&cert).map_err(|_| refuse("holds no certificate".to_owned()))?;
    if key.as_ref().is_some_and(|key| parsed.public_key().raw != key.subject_public_key_info()) {
        let key = key_path.file_name().unwrap_or_default().to_string_lossy();
        return Err(refuse(format!("does not belong to {key}")));
    }
    let may_sign = parsed.is_ca() && matches!(parsed.key_usage(), Ok(Some(ku)) if ku.value.key_cert_sign());
    if !may_sign {
        return Err(refuse("may not sign certificates (CA and keyCertSign are needed)".to_owned()));
    }
    let validity = peer::validity(&cert).map_err(|_| refuse("has no readable validity".to_owned()))?;
    let issuer = key.map(|key| Issuer::from_ca_cert_der(&cert, key)).transpose();
    let issuer = issuer.map_err(|_| refuse("holds no CA certificate".to_owned()))?;
    Ok(Root { cert, validity, issuer })
}

/// The newest root that can sign at `now`: one that is not too new for it, if there is one.
fn signer<'a>(
    roots: &'a [Root],
    now: SystemTime,
    fresh: &[(CertificateDer<'static>, Instant)],
) -> Option<&'a Root> {
    let can = |root: &&Root| root.issuer.is_some() && root.validity.0 <= now && now < root.validity.1;
    let is_fresh = |root: &&Root| fresh.iter().any(|(cert, _)| *cert == root.cert);
    let mut able = roots.iter().filter(can);
    able.clone().find(|root| !is_fresh(root)).or_else(|| able.next())
}

impl fmt::Debug for EmbeddedCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedCa")
            .field("dir", &self.dir)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn root_params(options: &EmbeddedOptions) -> Result<CertificateParams, CaError> {
    let now = options.clock.now();
    let mut params = base_params(now - SKEW, now + ROOT_TTL)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::OrganizationName, &*options.trust_domain);
    params.distinguished_name.push(DnType::CommonName, "Culvert embedded root");
    Ok(params)
}

/// Validity and a random serial number; nothing else.
fn base_params(not_before: SystemTime, not_after: SystemTime) -> Result<CertificateParams, CaError> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|_| CaError::Random)?;
    // Positive and never zero, as RFC 5280 §4.1.2.2 wants it.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    Ok(params)
}

#[cfg(test)]
mod tests;
