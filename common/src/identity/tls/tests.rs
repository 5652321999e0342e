mod meeting;
mod wrong;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::{AlertDescription, Connection, Error, HandshakeKind, NamedGroup};

use super::*;
use crate::identity::fixtures::{Leaf, Made, Pki, Standing, id, shop};
use meeting::{Meeting, foreign_client, foreign_server};

const GOOD: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn valid(from: i64, to: i64) -> Leaf {
    Leaf { validity: (from, to), ..Leaf::of(GOOD) }
}

fn used_for(usages: Vec<ExtendedKeyUsagePurpose>) -> Leaf {
    Leaf { usages, ..Leaf::of(GOOD) }
}

fn result(error: &Error) -> Handshake {
    result_of(&std::io::Error::new(std::io::ErrorKind::InvalidData, error.clone()))
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
