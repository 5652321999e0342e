use std::io::{Read, Write};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::{
    AlertDescription, ClientConnection, Connection, DigitallySignedStruct, Error, HandshakeKind, NamedGroup,
    ServerConnection, SignatureScheme,
};
use rustls_pki_types::PrivateKeyDer;

use super::*;
use crate::identity::fixtures::{DNS, Leaf, Made, Pki, Standing, URI, id, shop};

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

fn foreign_client(made: Option<&Made>, provider: Arc<CryptoProvider>) -> Arc<ClientConfig> {
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

fn foreign_server(made: &Made, provider: Arc<CryptoProvider>) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anyone))
        .with_cert_resolver(unchecked(made));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

/// What came of a handshake in which each side sends its data as early as TLS lets it.
struct Meeting {
    client: Connection,
    server: Connection,
    client_error: Option<Error>,
    server_error: Option<Error>,
    client_got: Vec<u8>,
    server_got: Vec<u8>,
}

impl Meeting {
    fn of(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Self {
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
    fn succeeded(&self, name: &str) {
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

const GOOD: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// A peer and what comes of it: part of the refusal's text and the alert; `None` where it is accepted.
struct Row {
    name: &'static str,
    made: Made,
    as_client: Option<(&'static str, AlertDescription)>,
    as_server: Option<(&'static str, AlertDescription)>,
}

fn refused(name: &'static str, made: Made, text: &'static str, alert: AlertDescription) -> Row {
    Row { name, made, as_client: Some((text, alert)), as_server: Some((text, alert)) }
}

fn uris(uris: &[&[u8]]) -> Leaf {
    Leaf::named(uris.iter().map(|uri| (URI, uri.to_vec())).collect())
}

fn valid(from: i64, to: i64) -> Leaf {
    Leaf { validity: (from, to), ..Leaf::of(GOOD) }
}

fn used_for(usages: Vec<ExtendedKeyUsagePurpose>) -> Leaf {
    Leaf { usages, ..Leaf::of(GOOD) }
}

fn chain_rows(pki: &Pki) -> Vec<Row> {
    use AlertDescription::{BadCertificate, CertificateExpired, DecryptError, UnknownCA};
    let below = pki.intermediate("below");
    let mut with_intermediate = below.sign(&Leaf::of(GOOD));
    with_intermediate.chain.push(below.cert.clone());
    let mut broken = pki.sign(&Leaf::of(GOOD));
    let mut bytes = broken.chain[0].to_vec();
    let cut = bytes.len() / 2;
    bytes.truncate(cut);
    broken.chain = vec![bytes.into()];
    let mut below_a_leaf = below.sign(&Leaf::of(GOOD));
    below_a_leaf.chain.push(pki.sign(&Leaf::of(GOOD)).chain.remove(0));
    vec![
        Row { name: "good", made: pki.sign(&Leaf::of(GOOD)), as_client: None, as_server: None },
        Row { name: "good, with intermediate", made: with_intermediate, as_client: None, as_server: None },
        refused("intermediate missing", below.sign(&Leaf::of(GOOD)), "UnknownIssuer", UnknownCA),
        refused("wrong intermediate", below_a_leaf, "UnknownIssuer", UnknownCA),
        refused("expired", pki.sign(&valid(-3_600, -1)), "certificate expired", CertificateExpired),
        refused(
            "not yet valid",
            pki.sign(&valid(60, 3_600)),
            "certificate not valid yet",
            CertificateExpired,
        ),
        refused("other root", Pki::new("other").sign(&Leaf::of(GOOD)), "UnknownIssuer", UnknownCA),
        refused(
            "other root, same name",
            Pki::new("root").sign(&Leaf::of(GOOD)),
            "BadSignature",
            DecryptError,
        ),
        refused("self-signed", Leaf::of(GOOD).self_signed(), "UnknownIssuer", UnknownCA),
        refused("half a certificate", broken, "BadEncoding", BadCertificate),
    ]
}

fn name_rows(pki: &Pki) -> Vec<Row> {
    use AlertDescription::CertificateUnknown;
    let row = |name, leaf: Leaf, text| refused(name, pki.sign(&leaf), text, CertificateUnknown);
    let malformed = |uri: &str| uris(&[uri.as_bytes()]);
    let no_identity = "is no identity of the form";
    vec![
        row("no names at all", Leaf::named(vec![]), "no URI name"),
        row("DNS name only", Leaf::named(vec![(DNS, b"cart.shop.svc".to_vec())]), "no URI name"),
        row("two identities", uris(&[GOOD.as_bytes(), b"spiffe://cluster.local/ns/a/sa/b"]), "2 URI names"),
        row("the same identity twice", uris(&[GOOD.as_bytes(), GOOD.as_bytes()]), "2 URI names"),
        row("another URI first", uris(&[b"https://example.com", GOOD.as_bytes()]), "2 URI names"),
        row("a URI that is no text first", uris(&[b"spiffe://\xff", GOOD.as_bytes()]), "cannot be read"),
        row("a URI that is no text last", uris(&[GOOD.as_bytes(), b"\xff\xfe"]), "cannot be read"),
        row("a name of unknown kind", Leaf::named(vec![(URI, GOOD.into()), (12, vec![1])]), "cannot be read"),
        row("no SPIFFE", malformed("https://cluster.local/ns/shop/sa/cart"), no_identity),
        row("no account", malformed("spiffe://cluster.local/ns/shop"), no_identity),
        row("empty namespace", malformed("spiffe://cluster.local/ns//sa/cart"), no_identity),
        row("percent-encoded", malformed("spiffe://cluster.local/ns/sh%6fp/sa/cart"), no_identity),
        row("query", malformed("spiffe://cluster.local/ns/shop/sa/cart?x"), no_identity),
        row("fragment", malformed("spiffe://cluster.local/ns/shop/sa/cart#x"), no_identity),
        row("NUL", malformed("spiffe://cluster.local/ns/shop/sa/cart\0"), no_identity),
        row("newline", malformed("spiffe://cluster.local/ns/shop/sa/cart\n"), no_identity),
        row("4 KB", malformed(&format!("{GOOD}{}", "x".repeat(4_096))), no_identity),
        Row {
            name: "other trust domain",
            made: pki.sign(&Leaf::of("spiffe://elsewhere/ns/shop/sa/cart")),
            as_client: Some(("not of trust domain cluster.local", CertificateUnknown)),
            as_server: Some((
                "peer did not present the expected SAN (spiffe://cluster.local/ns/shop/sa/cart), \
                 got spiffe://elsewhere/ns/shop/sa/cart",
                CertificateUnknown,
            )),
        },
        Row {
            name: "somebody else",
            made: pki.sign(&Leaf::of("spiffe://cluster.local/ns/shop/sa/other")),
            as_client: None,
            as_server: Some(("got spiffe://cluster.local/ns/shop/sa/other", CertificateUnknown)),
        },
        Row {
            name: "DNS name beside the identity",
            made: pki.sign(&Leaf::named(vec![(DNS, b"x".to_vec()), (URI, GOOD.into())])),
            as_client: None,
            as_server: None,
        },
    ]
}

fn usage_rows(pki: &Pki) -> Vec<Row> {
    use AlertDescription::{CertificateUnknown, UnsupportedCertificate};
    use ExtendedKeyUsagePurpose::{ClientAuth, CodeSigning, ServerAuth};
    vec![
        refused("no usage stated", pki.sign(&used_for(vec![])), "is not meant for", CertificateUnknown),
        refused(
            "for code",
            pki.sign(&used_for(vec![CodeSigning])),
            "certificate does not allow extended key usage",
            UnsupportedCertificate,
        ),
        Row {
            name: "server only",
            made: pki.sign(&used_for(vec![ServerAuth])),
            as_client: Some(("client authentication", UnsupportedCertificate)),
            as_server: None,
        },
        Row {
            name: "client only",
            made: pki.sign(&used_for(vec![ClientAuth])),
            as_client: None,
            as_server: Some(("server authentication", UnsupportedCertificate)),
        },
    ]
}

#[track_caller]
/// How a refusal with this text and alert is counted; an alert that tells nothing more is one of `other`.
fn counted((text, alert): (&str, AlertDescription), other: Handshake) -> Handshake {
    let somebody_else = text.contains("trust domain") || text.contains("got spiffe://");
    match alert {
        _ if somebody_else => Handshake::WrongIdentity,
        AlertDescription::UnknownCA | AlertDescription::DecryptError => Handshake::UntrustedRoot,
        AlertDescription::CertificateExpired => Handshake::Expired,
        AlertDescription::BadCertificate => Handshake::BadName,
        AlertDescription::UnsupportedCertificate => Handshake::WrongIdentity,
        _ => other,
    }
}

fn result(error: &Error) -> Handshake {
    result_of(&std::io::Error::new(std::io::ErrorKind::InvalidData, error.clone()))
}

fn check(
    row: &str,
    got: Option<&Error>,
    peer: Option<&Error>,
    (want, other): (Option<(&'static str, AlertDescription)>, Handshake),
) {
    match (got, want) {
        (None, None) => {}
        (Some(error), Some((text, alert))) => {
            // rustls prints some of its chain errors as `Debug` text, and ours too.
            let seen =
                PeerIdentityError::from_tls(error).map_or_else(|| error.to_string(), ToString::to_string);
            assert!(seen.contains(text), "{row}: {seen}");
            assert_eq!(peer, Some(&Error::AlertReceived(alert)), "{row}: {seen}");
            let results = (result(error), peer.map(result));
            assert_eq!(results, (counted((text, alert), other), Some(Handshake::Refused)), "{row}: {seen}");
            assert_eq!(
                PeerIdentityError::from_tls(error).is_some(),
                alert == AlertDescription::CertificateUnknown,
                "{row}: {seen}"
            );
        }
        (got, want) => panic!("{row}: {got:?}, wanted {want:?}"),
    }
}

#[test]
fn wrong_certificates_are_refused_on_both_sides_before_any_byte() {
    let pki = Pki::new("root");
    let ours = pki.workload(&shop("payments"));
    let all = [
        (chain_rows(&pki), Handshake::Tls),
        (name_rows(&pki), Handshake::BadName),
        (usage_rows(&pki), Handshake::WrongIdentity),
    ];
    for (row, other) in
        all.into_iter().flat_map(|(rows, other)| rows.into_iter().map(move |row| (row, other)))
    {
        let name = format!("{} as client", row.name);
        let meeting = Meeting::of(foreign_client(Some(&row.made), provider()), ours.server_config());
        check(&name, meeting.server_error.as_ref(), meeting.client_error.as_ref(), (row.as_client, other));
        if row.as_client.is_some() {
            // Nor does the server send anything before it knows the client, which TLS would allow.
            assert_eq!((&meeting.server_got[..], &meeting.client_got[..]), (&b""[..], &b""[..]), "{name}");
        } else {
            meeting.succeeded(&name);
        }

        let name = format!("{} as server", row.name);
        let expected = ours.client_config(&[shop("cart")]);
        let meeting = Meeting::of(expected, foreign_server(&row.made, provider()));
        check(&name, meeting.client_error.as_ref(), meeting.server_error.as_ref(), (row.as_server, other));
        if row.as_server.is_some() {
            assert_eq!((&meeting.server_got[..], &meeting.client_got[..]), (&b""[..], &b""[..]), "{name}");
        } else {
            meeting.succeeded(&name);
        }
    }
}

#[test]
fn a_client_without_certificate_is_refused() {
    let pki = Pki::new("root");
    let meeting = Meeting::of(foreign_client(None, provider()), pki.workload(&shop("a")).server_config());
    assert_eq!(meeting.server_error, Some(Error::NoCertificatesPresented));
    assert_eq!(meeting.server_error.as_ref().map(result), Some(Handshake::NoPeerCertificate));
    assert_eq!(meeting.client_error, Some(Error::AlertReceived(AlertDescription::CertificateRequired)));
    assert_eq!(meeting.server_got, b"");
}

#[test]
fn a_client_with_a_stolen_chain_but_another_key_is_refused() {
    let pki = Pki::new("root");
    let (victim, thief) = (pki.sign(&Leaf::of(GOOD)), pki.sign(&Leaf::of(GOOD)));
    let stolen = Made { chain: victim.chain, key: thief.key };
    let client = foreign_client(Some(&stolen), provider());
    let meeting = Meeting::of(client, pki.workload(&shop("a")).server_config());
    assert!(matches!(meeting.server_error, Some(Error::InvalidCertificate(_))), "{:?}", meeting.server_error);
    assert_eq!(meeting.server_got, b"");
}

#[test]
fn an_empty_expected_set_accepts_nobody_and_a_larger_one_each_member() {
    let pki = Pki::new("root");
    let ours = pki.workload(&shop("payments"));
    let server = pki.workload(&shop("cart")).server_config();
    let meeting = Meeting::of(ours.client_config(&[]), server.clone());
    assert!(PeerIdentityError::from_tls(&meeting.client_error.unwrap()).is_some());
    let set = [shop("a"), shop("cart"), shop("b")];
    Meeting::of(ours.client_config(&set), server).succeeded("one of three");
}

#[test]
fn both_sides_learn_who_the_other_is_and_nothing_leaks_into_the_hello() {
    let pki = Pki::new("root");
    let client = pki.workload(&shop("payments")).client_config(&[shop("cart")]);
    let meeting = Meeting::of(client, pki.workload(&shop("cart")).server_config());
    meeting.succeeded("own pair");
    assert_eq!(peer_identity(meeting.server.peer_certificates()), Ok(shop("payments")));
    let server = peer_certificate(meeting.client.peer_certificates()).unwrap();
    assert_eq!(server.identity, shop("cart"));
    assert_eq!(server.not_after, crate::identity::fixtures::at(3_600));
    assert_eq!(meeting.server.alpn_protocol(), Some(ALPN));
    let Connection::Server(server) = &meeting.server else { unreachable!() };
    assert_eq!(server.server_name(), None);
    assert_eq!(peer_identity(None), Err(PeerIdentityError::NoCertificate));
    assert_eq!(peer_identity(Some(&[])), Err(PeerIdentityError::NoCertificate));
}

fn groups(groups: &[&'static dyn rustls::crypto::SupportedKxGroup]) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: groups.to_vec(), ..CryptoProvider::clone(&provider()) })
}

#[test]
fn the_hybrid_group_is_preferred_and_peers_without_it_cost_no_round_trip() {
    use HandshakeKind::{Full, FullWithHelloRetryRequest};
    let pki = Pki::new("root");
    let (client, server) = (pki.workload(&shop("a")), pki.workload(&shop("cart")));
    let other = pki.sign(&Leaf::of(GOOD));
    let to_cart = || client.client_config(&[shop("cart")]);
    let check = |name: &str, meeting: Meeting, group: NamedGroup, kind: HandshakeKind| {
        meeting.succeeded(name);
        let got = meeting.client.negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!((got, meeting.client.handshake_kind()), (Some(group), Some(kind)), "{name}");
        let suite = meeting.client.negotiated_cipher_suite().map(|suite| suite.suite());
        assert_eq!(suite, Some(rustls::CipherSuite::TLS13_AES_256_GCM_SHA384), "{name}");
    };
    let own = Meeting::of(to_cart(), server.server_config());
    check("own pair", own, NamedGroup::X25519MLKEM768, Full);
    let classic = foreign_server(&other, groups(&[kx_group::X25519]));
    check("server without ML-KEM", Meeting::of(to_cart(), classic), NamedGroup::X25519, Full);
    let p256 = foreign_server(&other, groups(&[kx_group::SECP256R1]));
    check(
        "server with P-256 only",
        Meeting::of(to_cart(), p256),
        NamedGroup::secp256r1,
        FullWithHelloRetryRequest,
    );
    let hybrid_last = groups(&[kx_group::X25519, kx_group::SECP256R1, kx_group::X25519MLKEM768]);
    let meeting = Meeting::of(foreign_client(Some(&other), hybrid_last), server.server_config());
    check("client that prefers X25519", meeting, NamedGroup::X25519, Full);
}

#[test]
fn chacha_is_not_spoken() {
    let chacha = Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
        ..CryptoProvider::clone(&provider())
    });
    let pki = Pki::new("root");
    let made = pki.sign(&Leaf::of(GOOD));
    let ours = pki.workload(&shop("a"));
    let meeting = Meeting::of(foreign_client(Some(&made), chacha.clone()), ours.server_config());
    assert!(matches!(meeting.server_error, Some(Error::PeerIncompatible(_))), "{:?}", meeting.server_error);
    let meeting = Meeting::of(ours.client_config(&[shop("cart")]), foreign_server(&made, chacha));
    assert_eq!(meeting.client_error, Some(Error::AlertReceived(AlertDescription::HandshakeFailure)));
}

#[test]
fn no_session_is_ever_resumed() {
    let pki = Pki::new("root");
    let server = pki.workload(&shop("cart")).server_config();
    // A client that would resume if it could.
    let eager = foreign_client(Some(&pki.sign(&Leaf::of(GOOD))), provider());
    for _ in 0..2 {
        let meeting = Meeting::of(eager.clone(), server.clone());
        meeting.succeeded("eager client");
        assert_eq!(meeting.client.handshake_kind(), Some(HandshakeKind::Full));
    }
    // A server that would let itself be resumed.
    let generous = foreign_server(&pki.sign(&Leaf::of(GOOD)), provider());
    let ours = pki.workload(&shop("a")).client_config(&[shop("cart")]);
    for _ in 0..2 {
        let meeting = Meeting::of(ours.clone(), generous.clone());
        meeting.succeeded("generous server");
        assert_eq!(meeting.client.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn an_expired_certificate_of_ours_is_not_taken_over() {
    let pki = Pki::new("root");
    let check = |leaf: &Leaf, text: &str| {
        let made = pki.sign(leaf);
        let error = super::super::WorkloadCert::new(
            &shop("cart"),
            &pki.issued(&made),
            Arc::new(Standing),
            &Acceptance::default(),
        )
        .unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    };
    check(&valid(-3_600, -1), "not valid now");
    check(&valid(60, 3_600), "not valid now");
    check(&Leaf::of("spiffe://cluster.local/ns/shop/sa/other"), "does not prove it");
    check(&used_for(vec![ExtendedKeyUsagePurpose::ServerAuth]), "does not prove it");
    let mut wrong_key = pki.sign(&Leaf::of(GOOD));
    wrong_key.key = rcgen::KeyPair::generate().unwrap();
    let issued = pki.issued(&wrong_key);
    let refused = |issued| {
        super::super::WorkloadCert::new(&shop("cart"), &issued, Arc::new(Standing), &Acceptance::default())
            .unwrap_err()
    };
    assert!(refused(issued).to_string().contains("cannot be used"));
    let mut foreign = pki.issued(&pki.sign(&Leaf::of(GOOD)));
    foreign.roots = vec![Pki::new("other").cert];
    assert!(refused(foreign).to_string().contains("UnknownIssuer"));
    let mut rootless = pki.issued(&pki.sign(&Leaf::of(GOOD)));
    rootless.roots.clear();
    assert!(refused(rootless).to_string().contains("no root"));
    let mut empty = pki.issued(&pki.sign(&Leaf::of(GOOD)));
    empty.chain.clear();
    assert!(refused(empty).to_string().contains("no certificate"));
}

#[tokio::test]
async fn the_reason_comes_back_out_of_an_io_error() {
    let pki = Pki::new("root");
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = tokio_rustls::TlsConnector::from(pki.workload(&shop("a")).client_config(&[shop("cart")]));
    let acceptor = tokio_rustls::TlsAcceptor::from(pki.workload(&shop("other")).server_config());
    let (client, server) = tokio::join!(connector.connect(server_name(), near), acceptor.accept(far));
    let error = client.unwrap_err();
    let want = PeerIdentityError::Unexpected { got: shop("other"), want: Arc::from([shop("cart")]) };
    assert_eq!(PeerIdentityError::from_io(&error), Some(&want));
    assert_eq!(explain(&error), want.to_string());
    assert!(error.to_string().contains(&want.to_string()), "rustls's own text says it too: {error}");
    assert_eq!(
        want.to_string(),
        "peer did not present the expected SAN (spiffe://cluster.local/ns/shop/sa/cart), got \
         spiffe://cluster.local/ns/shop/sa/other; did the pod behind this address change?"
    );
    assert_eq!(PeerIdentityError::from_io(&server.unwrap_err()), None);
    assert_eq!(PeerIdentityError::from_io(&std::io::ErrorKind::TimedOut.into()), None);
}

#[test]
fn long_lists_of_expected_identities_are_cut() {
    let want: Arc<[SpiffeId]> = (0..100).map(|i| shop(&format!("s{i}"))).collect();
    let text = PeerIdentityError::Unexpected { got: id(GOOD), want }.to_string();
    assert!(text.contains("sa/s3 and 96 more"), "{text}");
}

#[test]
fn secrets_are_not_printed() {
    let pki = Pki::new("root");
    let made = pki.sign(&Leaf::of(GOOD));
    let issued = pki.issued(&made);
    let workload =
        super::super::WorkloadCert::new(&shop("cart"), &issued, Arc::new(Standing), &Acceptance::default())
            .unwrap();
    assert_eq!(format!("{:?}", issued.key), "PrivateKey(secret)");
    let all = format!(
        "{issued:?} {workload:?} {:?} {:?}",
        workload.server_config(),
        workload.client_config(&[shop("a")])
    );
    // The private scalar stands after the fixed head of the PKCS#8 document.
    let scalar = &made.key.serialized_der()[36..68];
    let hex = scalar.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let decimal = scalar.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let (hex, decimal) = (hex.get(..16).unwrap(), decimal.get(..20).unwrap());
    assert!(!all.to_lowercase().contains(hex) && !all.contains(decimal), "{all}");
}

/// What `identity` has of `pki`, with these trust domains beside its own.
fn with_aliases(pki: &Pki, identity: &SpiffeId, aliases: &[&str]) -> super::super::WorkloadCert {
    let made = pki.sign(&Leaf::of(&identity.to_string()));
    let accepts = Acceptance { aliases: aliases.iter().map(|&a| a.into()).collect(), revocation: None };
    super::super::WorkloadCert::new(identity, &pki.issued(&made), Arc::new(Standing), &accepts).unwrap()
}

#[test]
fn peers_of_an_aliased_trust_domain_are_accepted_and_keep_their_identity() {
    let pki = Pki::new("root");
    let (old, new) = (id("spiffe://old.example/ns/shop/sa/cart"), shop("pay"));
    let renamed = id("spiffe://cluster.local/ns/shop/sa/cart");
    let both = with_aliases(&pki, &new, &["old.example"]);
    let alone = with_aliases(&pki, &new, &[]);
    let before = with_aliases(&pki, &old, &["cluster.local"]);
    // The peer as client, and as server under the name that the state has for it.
    let meeting = Meeting::of(before.client_config(std::slice::from_ref(&new)), both.server_config());
    meeting.succeeded("client of the alias");
    assert_eq!(peer_identity(meeting.server.peer_certificates()).unwrap(), old, "as it has proven itself");
    Meeting::of(both.client_config(std::slice::from_ref(&renamed)), before.server_config())
        .succeeded("server of the alias");
    let text = |error: &Option<Error>| error.as_ref().unwrap().to_string();
    let refused = Meeting::of(before.client_config(std::slice::from_ref(&new)), alone.server_config());
    assert!(text(&refused.server_error).contains("not of trust domain cluster.local"));
    let refused = Meeting::of(alone.client_config(std::slice::from_ref(&renamed)), before.server_config());
    assert!(text(&refused.client_error).contains("did not present the expected SAN"));
    let other = id("spiffe://cluster.local/ns/shop/sa/other");
    let refused = Meeting::of(both.client_config(&[other]), before.server_config());
    assert!(text(&refused.client_error).contains("got spiffe://old.example/ns/shop/sa/cart"));
}
