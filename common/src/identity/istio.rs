//! Certificates from a server that speaks Istio's protocol: istiod, or a controller of our own.
//!
//! The server decides by the caller's token whom it signs for; the name in the request is not what counts there. All that
//! it answers is checked before use: here its form and size, by `workload` whom it proves, until when, and by which root.

mod lifetime;

use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use prost::Message as _;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroize as _;

use lifetime::Lifetime;

use super::ca::{CaError, Issued, PrivateKey};
use super::messages::{Asked, IMPERSONATED, METHOD, Metadata, Reply, Text};
use super::peer;
use crate::grpc::{CallError, Channel, Code, ConnectError, Limits, Stamp, Target, connect};
use crate::types::SpiffeId;

/// Limit of one request.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Between attempts to connect, whatever the number of identities.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);
/// Bytes of an answer; a chain with a bundle of twenty roots has about 40 KiB.
const ANSWER_MAX: usize = 1 << 20;
/// Certificates between leaf and root, with the leaf.
const CHAIN_MAX: usize = 10;
/// Roots of a mesh, old and new.
const ROOTS_MAX: usize = 100;

/// How a server is asked.
#[derive(Clone, Debug)]
pub struct IstioOptions {
    /// The server.
    pub target: Target,
    /// Validity that is asked for; the server may shorten it.
    pub ttl: Duration,
    /// Whether the identity asked for is a pod's that this process serves, or the process's own.
    pub impersonates: bool,
}

/// A certificate authority behind Istio's protocol.
pub struct IstioCa {
    options: IstioOptions,
    lifetime: Lifetime,
    /// Held while a connection is made, so that all who need one share the attempt.
    live: Mutex<Option<Live>>,
    /// The last attempt that failed, for those who waited for it or come right after.
    failed: StdMutex<Option<Attempt>>,
}

/// An attempt to connect that failed, and the roots' file as it was then.
struct Attempt {
    at: Instant,
    roots: Option<Stamp>,
    error: Arc<ConnectError>,
}

/// A connection, and the roots' file as it was then.
struct Live {
    channel: Channel,
    roots: Option<Stamp>,
    made: Instant,
}

impl IstioCa {
    /// Connects when the first certificate is asked for.
    pub fn new(options: IstioOptions) -> Self {
        let lifetime = Lifetime::new(options.ttl);
        Self { options, lifetime, live: Mutex::default(), failed: StdMutex::default() }
    }

    /// A new key, and a certificate of `id` for it from the server.
    ///
    /// **Errors**: no connection, the server's refusal, or an answer that is none; worth a retry.
    /// **Cancel safety**: a dropped call leaves nothing behind here; the server may have signed.
    pub async fn issue(&self, id: &SpiffeId) -> Result<Issued, CaError> {
        let mut key = KeyPair::generate().map_err(|source| sign(id, source))?;
        let secret = PrivateKey::from_pkcs8(key.serialized_der().to_vec());
        let asked = self.request(id, &key);
        key.zeroize();
        let reply = self.ask(asked?).await.map_err(|failure| match failure {
            Failure::Connect(source) => CaError::Connect { source },
            Failure::Call { error, .. } => CaError::Call { id: id.clone(), source: Box::new(error) },
        })?;
        let unusable = |seen| CaError::Unusable { id: id.clone(), seen };
        let Certificates { chain, roots } = read(&reply).map_err(unusable)?;
        let leaf = chain.first().ok_or_else(|| unusable("no certificate".to_owned()))?;
        let (not_before, not_after) =
            peer::validity(leaf).map_err(|source| CaError::WrongIdentity { wanted: id.clone(), source })?;
        Ok(Issued { key: secret, chain, roots, not_before, not_after })
    }

    fn request(&self, id: &SpiffeId, key: &KeyPair) -> Result<Asked, CaError> {
        let name = Ia5String::try_from(id.to_string()).map_err(|source| sign(id, source))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(name)];
        let csr =
            params.serialize_request(key).and_then(|csr| csr.pem()).map_err(|source| sign(id, source))?;
        let impersonated =
            || Metadata { fields: [(IMPERSONATED.to_owned(), Text { text: id.to_string() })].into() };
        Ok(Asked {
            csr,
            validity: self.lifetime.tries().asked(),
            metadata: self.options.impersonates.then(impersonated),
        })
    }

    /// Asks, and asks again for what the server is willing to sign where that is only a matter of time.
    async fn ask(&self, mut asked: Asked) -> Result<Reply, Failure> {
        let mut tries = self.lifetime.tries();
        loop {
            asked.validity = tries.asked();
            let mut answer = self.call(&asked, false).await;
            // A connection that served before may have ended unnoticed: the server's doing, not a failure.
            if matches!(&answer, Err(Failure::Call { error, is_fresh: false }) if is_broken(error)) {
                answer = self.call(&asked, true).await;
            }
            match &answer {
                Ok(_) => self.lifetime.agreed(tries.asked()),
                Err(Failure::Call {
                    error: CallError::Status { code: Code::INVALID_ARGUMENT, message },
                    ..
                }) if tries.refused(message) => {
                    continue;
                }
                Err(_) => {}
            }
            return answer;
        }
    }

    async fn call(&self, asked: &Asked, anew: bool) -> Result<Reply, Failure> {
        let (channel, is_fresh) = self.channel(anew).await.map_err(Failure::Connect)?;
        channel.unary(METHOD, asked, REQUEST_MAX).await.map_err(|error| Failure::Call { error, is_fresh })
    }

    /// The connection that there is, or a new one; whether it is new.
    async fn channel(&self, anew: bool) -> Result<(Channel, bool), Arc<ConnectError>> {
        let asked = Instant::now();
        let mut live = self.live.lock().await;
        let roots = self.options.target.roots.stamp();
        if let Some(live) = &*live
            && !live.channel.is_closed()
            && live.roots == roots
            && !(anew && live.made < asked)
        {
            return Ok((live.channel.clone(), false));
        }
        if let Some(error) = self.failed_since(asked, roots) {
            return Err(error);
        }
        *live = None;
        let limits = Limits { message_max: ANSWER_MAX, ..Limits::default() };
        match connect(&self.options.target, limits).await {
            Ok(channel) => {
                *live = Some(Live { channel: channel.clone(), roots, made: Instant::now() });
                Ok((channel, true))
            }
            Err(error) => {
                let error = Arc::new(error);
                *self.failed.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Attempt { at: Instant::now(), roots, error: Arc::clone(&error) });
                Err(error)
            }
        }
    }

    /// What became of an attempt that began after this one was asked for, or has just failed in the same way.
    fn failed_since(&self, asked: Instant, roots: Option<Stamp>) -> Option<Arc<ConnectError>> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let same =
            |last: &&Attempt| last.roots == roots && (last.at > asked || last.at.elapsed() < ATTEMPT_PAUSE);
        failed.as_ref().filter(same).map(|last| Arc::clone(&last.error))
    }
}

impl fmt::Debug for IstioCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IstioCa").field("options", &self.options).finish_non_exhaustive()
    }
}

enum Failure {
    Connect(Arc<ConnectError>),
    Call { error: CallError, is_fresh: bool },
}

fn is_broken(error: &CallError) -> bool {
    matches!(error, CallError::Broken { .. } | CallError::Ended)
}

fn sign(id: &SpiffeId, source: rcgen::Error) -> CaError {
    CaError::Sign { id: id.to_string(), source }
}

/// What an answer holds.
#[derive(Debug)]
struct Certificates {
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
}

/// The certificates of an answer: the last text holds the roots, those before it the chain.
///
/// **Errors**: what is wrong with it.
fn read(reply: &Reply) -> Result<Certificates, String> {
    let Some((roots, chain)) = reply.cert_chain.split_last() else {
        return Err("it holds no certificate".to_owned());
    };
    if chain.is_empty() {
        return Err("it holds one element, where a leaf and its root are needed".to_owned());
    }
    let certificates = |texts: &[String], what: &str, max: usize| {
        let mut all = Vec::new();
        for cert in texts.iter().flat_map(|text| CertificateDer::pem_slice_iter(text.as_bytes())) {
            all.push(cert.map_err(|error| format!("its {what} is no PEM ({error})"))?);
            if all.len() > max {
                return Err(format!("its {what} has more than {max} certificates"));
            }
        }
        if all.is_empty() { Err(format!("its {what} holds no certificate")) } else { Ok(all) }
    };
    Ok(Certificates {
        chain: certificates(chain, "chain", CHAIN_MAX)?,
        roots: certificates(std::slice::from_ref(roots), "root", ROOTS_MAX)?,
    })
}

/// How many certificates an answer of a CA holds in its chain and as roots; `None` where it is refused. For fuzzing.
pub fn count_certificates(answer: &[u8]) -> Option<(usize, usize)> {
    let reply = Reply::decode(answer).ok()?;
    let read = read(&reply).ok()?;
    Some((read.chain.len(), read.roots.len()))
}

#[cfg(test)]
mod tests;
