use rcgen::{CertificateRevocationListParams, RevokedCertParams, SerialNumber};

use super::*;
use crate::identity::ca::pem;
use crate::identity::fixtures::{Leaf, Made, Pki, TempPath, at, put, shop};
use crate::identity::tls::unix;

/// The list that `by` signs of these certificates.
fn list(by: &Pki, revoked: &[&Made]) -> Vec<u8> {
    let serial = |made: &&Made| {
        let parsed = crate::identity::peer::parse(&made.chain[0]).unwrap();
        SerialNumber::from_slice(&parsed.tbs_certificate.serial.to_bytes_be())
    };
    let entry = |serial_number| RevokedCertParams {
        serial_number,
        revocation_time: at(-60).into(),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: at(-60).into(),
        next_update: at(-30).into(), // an old list still counts
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(serial).map(entry).collect(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    params.signed_by(&by.issuer).unwrap().der().to_vec()
}

fn leaf(by: &Pki, account: &str) -> Made {
    by.sign(&Leaf::of(&shop(account).to_string()))
}

fn store(root: &Pki) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add(root.cert.clone()).unwrap();
    store
}

struct World {
    dir: TempPath,
    root: Pki,
}

impl World {
    fn new() -> Self {
        let dir = TempPath::new();
        std::fs::create_dir(dir.path()).unwrap();
        Self { dir, root: Pki::new("root") }
    }

    fn write(&self, text: &str) {
        put(&self.dir, "next", text);
        std::fs::rename(self.dir.path().join("next"), self.path()).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("crl.pem")
    }

    fn check(&self, lists: &Revocation, chain: &[CertificateDer<'_>]) -> Result<(), PeerIdentityError> {
        let (leaf, above) = chain.split_first().unwrap();
        let check = |role| lists.check((leaf, above), &store(&self.root), unix(at(0)), role);
        let both = [check(Role::Client), check(Role::Server)];
        assert_eq!(both[0], both[1], "both ends look at it alike");
        both[0].clone()
    }
}

#[test]
fn a_revoked_certificate_is_refused_wherever_it_stands_in_the_chain() {
    let world = World::new();
    let below = world.root.intermediate("below");
    let (good, bad, low) = (leaf(&world.root, "a"), leaf(&world.root, "b"), leaf(&below, "c"));
    let chain = [low.chain[0].clone(), below.cert.clone()];
    world.write(&pem("X509 CRL", &list(&world.root, &[&bad])));
    let lists = Revocation::open(&world.path());
    assert_eq!(lists.status(), RevocationStatus { lists: 1, overdue: 0, problem: None });
    assert_eq!(world.check(&lists, &good.chain), Ok(()));
    assert_eq!(world.check(&lists, &bad.chain), Err(PeerIdentityError::Revoked));
    assert_eq!(world.check(&lists, &chain), Ok(()), "no list of its issuer: not revoked");
    // Several in one file, and one alone in DER.
    let two = [list(&world.root, &[]), list(&below, &[&low])].map(|der| pem("X509 CRL", &der)).concat();
    world.write(&two);
    assert!(lists.refresh() && !lists.refresh());
    assert_eq!(world.check(&lists, &chain), Err(PeerIdentityError::Revoked));
    assert_eq!(world.check(&lists, &bad.chain), Ok(()), "taken off the list");
    let above = Made { chain: vec![below.cert.clone()], key: rcgen::KeyPair::generate().unwrap() };
    std::fs::write(world.path(), list(&world.root, &[&above])).unwrap();
    assert!(lists.refresh());
    assert_eq!(world.check(&lists, &chain), Err(PeerIdentityError::Revoked), "its issuer is");
    assert_eq!(lists.revision(), 3);
}

#[test]
fn lists_that_were_never_readable_close_and_later_ones_stay_in_force() {
    let world = World::new();
    let (good, bad) = (leaf(&world.root, "a"), leaf(&world.root, "b"));
    let lists = Revocation::open(&world.path());
    assert!(lists.status().problem.unwrap().contains("cannot be read"));
    let error = world.check(&lists, &good.chain).unwrap_err().to_string();
    assert!(error.contains("never been readable"), "{error}");
    for garbage in [
        "",
        "garbage",
        "-----BEGIN X509 CRL-----\n",
        &pem("X509 CRL", b"\x30\x00"),
        &pem("CERTIFICATE", b"x"),
    ] {
        world.write(garbage);
        assert!(!lists.refresh());
        assert!(lists.status().problem.unwrap().contains("no usable revocation lists"), "{garbage:?}");
        assert!(world.check(&lists, &good.chain).is_err());
    }
    let right = pem("X509 CRL", &list(&world.root, &[&bad]));
    world.write(&right);
    assert!(lists.refresh());
    for spoiled in [Some("garbage"), None] {
        match spoiled {
            Some(text) => world.write(text),
            None => std::fs::remove_file(world.path()).unwrap(),
        }
        assert!(!lists.refresh());
        let status = lists.status();
        assert!(status.lists == 1 && status.problem.is_some());
        assert_eq!(world.check(&lists, &good.chain), Ok(()));
        assert_eq!(world.check(&lists, &bad.chain), Err(PeerIdentityError::Revoked));
    }
    world.write(&right);
    assert!(lists.refresh() && lists.status().problem.is_none());
}

/// An alarm, and nothing else: a mesh that stands still because a list was not renewed would be worse.
#[test]
fn a_list_past_its_next_update_counts_and_is_told() {
    let world = World::new();
    let (good, bad) = (leaf(&world.root, "a"), leaf(&world.root, "b"));
    // Its next update is half a minute ago.
    world.write(
        &[list(&world.root, &[&bad]), list(&Pki::new("other"), &[])]
            .map(|der| pem("X509 CRL", &der))
            .concat(),
    );
    let lists = Revocation::open(&world.path());
    for (now, overdue) in [(at(-31), 0), (at(0), 2), (at(-31), 0)] {
        lists.look_at_age(now);
        assert_eq!(lists.status(), RevocationStatus { lists: 2, overdue, problem: None });
        assert_eq!(world.check(&lists, &good.chain), Ok(()));
        assert_eq!(world.check(&lists, &bad.chain), Err(PeerIdentityError::Revoked));
    }
    lists.look_at_age(at(0));
    std::fs::remove_file(world.path()).unwrap();
    lists.refresh();
    lists.look_at_age(at(0));
    let status = lists.status();
    assert!(status.overdue == 2 && status.problem.is_some(), "both are told: {status:?}");
}

#[test]
fn a_list_that_its_issuer_has_not_signed_proves_nothing_and_closes() {
    let world = World::new();
    let forged = Pki::new("root");
    let good = leaf(&world.root, "a");
    world.write(&pem("X509 CRL", &list(&forged, &[])));
    let lists = Revocation::open(&world.path());
    assert!(matches!(world.check(&lists, &good.chain), Err(PeerIdentityError::RevocationUnknown(_))));
    assert!(read_lists(&vec![0; 1 << 20]).is_err());
    assert!(read_lists(pem("X509 CRL", &list(&world.root, &[])).repeat(LISTS_MAX + 1).as_bytes()).is_err());
}
