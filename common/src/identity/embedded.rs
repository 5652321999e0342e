//! The embedded CA: a root in a local directory that the agents of one machine share.
//!
//! For a laptop, a demo or a test. In a cluster an agent must not hold the mesh's root.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroize;

use crate::types::{Clock, SpiffeId, SystemClock};

use super::ca::{CaError, Issued, PrivateKey};
use super::{peer, root_dir};

/// Life of a root.
const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates begin this long ago, for peers whose clock is a little behind.
const SKEW: Duration = Duration::from_secs(60);

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

/// Certificate authority with its root in a local directory.
pub struct EmbeddedCa {
    dir: PathBuf,
    options: EmbeddedOptions,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_validity: (SystemTime, SystemTime),
}

impl EmbeddedCa {
    /// Opens the root in `dir`, or makes directory and root if there are none.
    ///
    /// Any number of processes may call this at once: all get the same root.
    ///
    /// **Shape**: `dir` has mode 0700 and this process's user; in it `root-key.pem` (P-256, PKCS#8, mode 0600) and
    /// `root-cert.pem`. Blocks for a few reads, and two synced writes the first time.
    /// **Errors**: directory or files that others could change or read, or that do not form a root valid now.
    pub fn open_or_create(dir: &Path, options: EmbeddedOptions) -> Result<Self, CaError> {
        let self_sign = |key: &KeyPair| root_params(&options)?.self_signed(key).map_err(CaError::SignRoot);
        let (key, root) = root_dir::open_or_create(dir, |key| self_sign(key).map(|cert| cert.pem()))?;
        let refuse = |seen: &str| CaError::Content { path: root_dir::cert_path(dir), seen: seen.to_owned() };
        let parsed = peer::parse(&root).map_err(|_| refuse("holds no certificate"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(refuse("does not belong to root-key.pem"));
        }
        let may_sign =
            parsed.is_ca() && matches!(parsed.key_usage(), Ok(Some(ku)) if ku.value.key_cert_sign());
        if !may_sign {
            return Err(refuse("may not sign certificates (CA and keyCertSign are needed)"));
        }
        let root_validity = peer::validity(&root).map_err(|_| refuse("has no readable validity"))?;
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|_| refuse("holds no CA certificate"))?;
        let ca = Self { dir: dir.to_owned(), options, issuer, root, root_validity };
        ca.not_after(ca.options.clock.now())?;
        Ok(ca)
    }

    /// The root's certificate, for those who verify.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// A new key and its certificate.
    ///
    /// **Errors**: `id` is of another trust domain, the root is not valid now, no randomness.
    pub fn issue(&self, id: &SpiffeId) -> Result<Issued, CaError> {
        if id.trust_domain() != &*self.options.trust_domain {
            let trust_domain = self.options.trust_domain.to_string();
            return Err(CaError::TrustDomain { id: id.clone(), trust_domain });
        }
        let failed = |source| CaError::Sign { id: id.clone(), source };
        let now = self.options.clock.now();
        let (not_before, not_after) = (now - SKEW, self.not_after(now)?);
        let mut key = KeyPair::generate().map_err(failed)?;
        let name = Ia5String::try_from(id.to_string()).map_err(failed)?;
        let mut params = base_params(not_before, not_after)?;
        params.is_ca = IsCa::ExplicitNoCa;
        // The subject stays empty, which makes the name's extension critical.
        params.subject_alt_names = vec![SanType::URI(name)];
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&key, &self.issuer);
        let secret = PrivateKey::from_pkcs8(key.serialized_der().to_vec());
        key.zeroize();
        Ok(Issued {
            key: secret,
            chain: vec![signed.map_err(failed)?.into()],
            roots: vec![self.root.clone()],
            not_before,
            not_after,
        })
    }

    /// End of a certificate issued now: it never outlives the root.
    fn not_after(&self, now: SystemTime) -> Result<SystemTime, CaError> {
        let (start, end) = self.root_validity;
        if now < start || now >= end {
            return Err(CaError::RootNotValid { path: self.dir.clone() });
        }
        Ok((now + self.options.ttl).min(end))
    }
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
