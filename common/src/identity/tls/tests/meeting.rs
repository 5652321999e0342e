//! Handshakes, with peers that are of this crate or of any other make.

use std::io::{Read, Write};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConnection, Connection, DigitallySignedStruct, Error, ServerConnection, SignatureScheme};
use rustls_pki_types::PrivateKeyDer;

use super::super::*;
use crate::identity::fixtures::Made;

/// Accepts every server and every client: the peer that a test spoils must not be the one that refuses.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

fn key(made: &Made) -> PrivateKeyDer<'static> {
    PrivateKeyDer::try_from(made.key.serialized_der().to_vec()).unwrap()
}

/// Chain and key of a peer, however broken.
fn unchecked(made: &Made) -> Arc<SingleCertAndKey> {
    let key = provider().key_provider.load_private_key(key(made)).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(made.chain.clone(), key)))
}

pub(super) fn foreign_client(made: Option<&Made>, provider: Arc<CryptoProvider>) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match made {
        Some(made) => config.with_client_cert_resolver(unchecked(made)),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

pub(super) fn foreign_server(made: &Made, provider: Arc<CryptoProvider>) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anyone))
        .with_cert_resolver(unchecked(made));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

/// What came of a handshake in which each side sends its data as early as TLS lets it.
pub(super) struct Meeting {
    pub(super) client: Connection,
    pub(super) server: Connection,
    pub(super) client_error: Option<Error>,
    pub(super) server_error: Option<Error>,
    pub(super) client_got: Vec<u8>,
    pub(super) server_got: Vec<u8>,
}

impl Meeting {
    pub(super) fn of(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Self {
        let mut meeting = Self {
            client: ClientConnection::new(client, server_name()).unwrap().into(),
            server: ServerConnection::new(server).unwrap().into(),
            client_error: None,
            server_error: None,
            client_got: Vec::new(),
            server_got: Vec::new(),
        };
        meeting.client.writer().write_all(b"from client").unwrap();
        meeting.server.writer().write_all(b"from server").unwrap();
        while meeting.client.wants_write() || meeting.server.wants_write() {
            step(
                &mut meeting.client,
                &mut meeting.server,
                &mut meeting.server_error,
                &mut meeting.server_got,
            );
            step(
                &mut meeting.server,
                &mut meeting.client,
                &mut meeting.client_error,
                &mut meeting.client_got,
            );
        }
        meeting
    }

    #[track_caller]
    pub(super) fn succeeded(&self, name: &str) {
        assert_eq!((&self.client_error, &self.server_error), (&None, &None), "{name}");
        assert_eq!(self.server_got, b"from client", "{name}");
        assert_eq!(self.client_got, b"from server", "{name}");
    }
}

/// Carries what `from` has to `to`; a side that failed still sends its alert but reads nothing more.
fn step(from: &mut Connection, to: &mut Connection, error: &mut Option<Error>, got: &mut Vec<u8>) {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut rest = &wire[..];
    while !rest.is_empty() && error.is_none() {
        to.read_tls(&mut rest).unwrap();
        match to.process_new_packets() {
            Ok(_) => {
                let _blocked = to.reader().read_to_end(got);
            }
            Err(seen) => *error = Some(seen),
        }
    }
}
