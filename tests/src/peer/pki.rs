//! Certificates of any kind, right and wrong, from the lab's root or another one.

use std::path::Path;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

/// A certificate authority.
pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    /// Certificate of the root.
    pub root: CertificateDer<'static>,
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct Claims {
    /// URI names.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Seconds from now to the start of its validity.
    pub from: i64,
    /// Seconds from now to the end of its validity.
    pub until: i64,
    /// What it may be used for.
    pub usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Claims {
    /// A right certificate of `uri`.
    pub fn of(uri: &str) -> Self {
        Self {
            uris: vec![uri.to_owned()],
            dns: Vec::new(),
            from: -60,
            until: 3600,
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        }
    }

    /// A right certificate of a service account of namespace `default`.
    pub fn account(account: &str) -> Self {
        Self::of(&identity(account))
    }
}

/// Identity of a service account of namespace `default`.
pub fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

/// A certificate with its key.
pub struct Leaf {
    /// The certificate alone.
    pub chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
    /// The certificate in PEM.
    pub cert_pem: String,
    /// Its key in PEM.
    pub key_pem: String,
}

impl Leaf {
    /// A copy of the key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }
}

impl Pki {
    /// The root that the lab's agents share; they have made it when the first of them is ready.
    pub fn open(dir: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("a root made by the agent");
        let pem = read("root-cert.pem");
        let key = KeyPair::from_pem(&read("root-key.pem")).expect("the root's key");
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).expect("the root's certificate");
        Self { issuer: Issuer::from_ca_cert_der(&root, key).expect("an issuer"), root }
    }

    /// A root that nobody trusts.
    pub fn stranger() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("a root").der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// Issues a certificate that says `claims`, whatever that is.
    pub fn issue(&self, claims: &Claims) -> Leaf {
        let name = |text: &String| Ia5String::try_from(text.as_str()).expect("an ASCII name");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uris = claims.uris.iter().map(|uri| SanType::URI(name(uri)));
        params.subject_alt_names = uris.chain(claims.dns.iter().map(|n| SanType::DnsName(name(n)))).collect();
        let now = OffsetDateTime::now_utc();
        params.not_before = now + Duration::seconds(claims.from);
        params.not_after = now + Duration::seconds(claims.until);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages.clone_from(&claims.usages);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Leaf {
            chain: vec![cert.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        }
    }
}

/// Whether a certificate contains `uri`: a search in its bytes, so that no parser is trusted.
pub fn names(cert: &CertificateDer<'_>, uri: &str) -> bool {
    cert.windows(uri.len()).any(|w| w == uri.as_bytes())
}
