//! Certificates that are wrong in one way each, shown by a client and by a server.

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{AlertDescription, Error};

use super::*;
use crate::identity::fixtures::{DNS, URI};

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

#[track_caller]
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
