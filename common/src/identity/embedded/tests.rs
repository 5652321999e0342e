use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::thread;

use rcgen::PKCS_ECDSA_P384_SHA384;
use x509_parser::prelude::ParsedExtension;

use super::*;
use crate::identity::fixtures::{Standing, TempPath, TestClock, at, embedded, id, shop};

fn options() -> EmbeddedOptions {
    EmbeddedOptions { clock: Arc::new(Standing), ..EmbeddedOptions::new("cluster.local") }
}

fn open(dir: &TempPath) -> Result<EmbeddedCa, CaError> {
    EmbeddedCa::open_or_create(dir.path(), options())
}

#[track_caller]
fn refused(dir: &TempPath, text: &str) {
    let error = open(dir).unwrap_err().to_string();
    assert!(error.contains(text), "{error}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_root_is_made_once_and_read_again() {
    let dir = TempPath::new();
    let first = open(&dir).unwrap();
    assert_eq!(first.root(), open(&dir).unwrap().root());
    assert_eq!(mode(dir.path()), 0o700);
    let mut names = Vec::new();
    for file in fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(mode(&file.path()), 0o600, "{file:?}");
        names.push(file.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["root-cert.pem", "root-key.pem"]);
    let key = fs::read_to_string(dir.path().join("root-key.pem")).unwrap();
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "PKCS#8");

    let root_der = first.root();
    let root = peer::parse(&root_der).unwrap();
    assert!(root.is_ca());
    assert_eq!(root.subject().to_string(), "O=cluster.local, CN=Culvert embedded root");
    assert_eq!(peer::validity(&root_der).unwrap(), (at(-60), at(10 * 365 * 86_400)));
    let usage = root.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
}

#[test]
fn agents_that_start_at_once_agree_on_one_root() {
    for _ in 0..10 {
        let dir = TempPath::new();
        let roots: Vec<_> = thread::scope(|scope| {
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&dir).unwrap().root())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(roots.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays");
        // What each of them signs is accepted by the others.
        let (one, other) = (open(&dir).unwrap(), open(&dir).unwrap());
        let issued = one.issue(&shop("cart")).unwrap();
        assert_eq!(issued.roots, [other.root()]);
    }
}

#[test]
fn an_agent_killed_half_way_leaves_a_state_that_the_next_completes() {
    let dir = TempPath::new();
    open(&dir).unwrap();
    fs::remove_file(dir.path().join("root-cert.pem")).unwrap();
    fs::write(dir.path().join(".0123456789abcdef.tmp"), "-----BEGIN PRIV").unwrap();
    let key = fs::read(dir.path().join("root-key.pem")).unwrap();
    let root = open(&dir).unwrap().root();
    assert_eq!(fs::read(dir.path().join("root-key.pem")).unwrap(), key);
    assert_eq!(root, open(&dir).unwrap().root());
}

#[test]
fn a_leaf_is_what_other_tls_stacks_expect() {
    let dir = TempPath::new();
    let ca = embedded(&dir, Arc::new(Standing));
    let issued = ca.issue(&shop("cart")).unwrap();
    assert_eq!((issued.not_before, issued.not_after), (at(-60), at(1_000)));
    assert_eq!(issued.chain.len(), 1);
    assert_eq!(peer::validity(&issued.chain[0]).unwrap(), (at(-60), at(1_000)));
    let leaf = peer::parse(&issued.chain[0]).unwrap();
    let root_der = ca.root();
    let root = peer::parse(&root_der).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(leaf.issuer().as_raw(), root.subject().as_raw());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "the subject is empty");
    assert_eq!(names.value.general_names.len(), 1);
    assert_eq!(peer::identity_for(&issued.chain[0], peer::Role::Client), Ok(shop("cart")));
    assert_eq!(peer::identity_for(&issued.chain[0], peer::Role::Server), Ok(shop("cart")));
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.flags == 1, "digitalSignature only");
    let basic = leaf.basic_constraints().unwrap().unwrap();
    assert!(basic.critical && !basic.value.ca);
    let authority = leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => Some(id.key_identifier.clone().unwrap().0),
        _ => None,
    });
    let subject = root.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    });
    assert!(subject.is_some() && authority == subject);
    assert_eq!(leaf.raw_serial().len(), 16);
    let other = ca.issue(&shop("cart")).unwrap();
    assert_ne!(leaf.raw_serial(), peer::parse(&other.chain[0]).unwrap().raw_serial());
    assert_ne!(leaf.public_key().raw, peer::parse(&other.chain[0]).unwrap().public_key().raw);
}

#[test]
fn a_leaf_never_outlives_the_root_and_a_dead_root_signs_nothing() {
    let dir = TempPath::new();
    let clock = TestClock::new();
    let ca = embedded(&dir, clock.clone());
    let life = 10 * 365 * 86_400;
    clock.set_ahead(life - 10);
    assert_eq!(ca.issue(&shop("cart")).unwrap().not_after, at(life));
    for ahead in [life + 1, -3_600] {
        clock.set_ahead(ahead);
        let error = ca.issue(&shop("cart")).unwrap_err().to_string();
        assert!(error.contains("is not valid now; check the clock"), "{error}");
        let again =
            EmbeddedCa::open_or_create(dir.path(), EmbeddedOptions { clock: clock.clone(), ..options() });
        assert!(matches!(again, Err(CaError::RootNotValid { .. })));
    }
}

#[test]
fn other_trust_domains_are_refused() {
    let dir = TempPath::new();
    let error = open(&dir).unwrap().issue(&id("spiffe://elsewhere/ns/shop/sa/cart")).unwrap_err().to_string();
    assert!(error.contains("not in trust domain cluster.local"), "{error}");
}

#[test]
fn a_directory_that_others_can_enter_is_refused() {
    for (bits, text) in [(0o755, "has mode 0755"), (0o710, "has mode 0710"), (0o1700, "has mode 1700")] {
        let dir = TempPath::new();
        open(&dir).unwrap();
        set_mode(dir.path(), bits);
        refused(&dir, text);
        set_mode(dir.path(), 0o700);
    }
}

#[test]
fn what_is_no_directory_of_ours_is_refused() {
    let file = TempPath::new();
    fs::write(file.path(), "").unwrap();
    refused(&file, "is no directory");
    fs::remove_file(file.path()).unwrap();

    let (target, link) = (TempPath::new(), TempPath::new());
    open(&target).unwrap();
    symlink(target.path(), link.path()).unwrap();
    refused(&link, "is no directory");
    fs::remove_file(link.path()).unwrap();

    let nowhere = TempPath::new();
    let below = nowhere.path().join("a").join("b");
    let error = EmbeddedCa::open_or_create(&below, options()).unwrap_err();
    assert!(matches!(error, CaError::File { wanted: "created", .. }), "{error}");

    // Another user's directory: root makes one, everybody else has one in `/`.
    if nix::unistd::geteuid().is_root() {
        let dir = TempPath::new();
        open(&dir).unwrap();
        nix::unistd::chown(dir.path(), Some(65_534.into()), None).unwrap();
        refused(&dir, "belongs to user 65534");
    } else {
        let error = EmbeddedCa::open_or_create(Path::new("/"), options()).unwrap_err().to_string();
        assert!(error.contains("belongs to user 0"), "{error}");
    }
}

#[test]
fn unsafe_files_are_refused() {
    let dir = TempPath::new();
    open(&dir).unwrap();
    let (key, cert) = (dir.path().join("root-key.pem"), dir.path().join("root-cert.pem"));
    set_mode(&key, 0o640);
    refused(&dir, "root-key.pem has mode 0640; it must be a regular file of user");
    set_mode(&key, 0o600);
    set_mode(&cert, 0o644);
    open(&dir).unwrap();
    set_mode(&cert, 0o664);
    refused(&dir, "root-cert.pem has mode 0664");
    set_mode(&cert, 0o644);

    let aside = dir.path().join("aside");
    fs::rename(&key, &aside).unwrap();
    symlink(&aside, &key).unwrap();
    refused(&dir, "root-key.pem cannot be read");
    fs::remove_file(&key).unwrap();
    nix::unistd::mkfifo(&key, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&dir, "root-key.pem is no regular file");
    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    refused(&dir, "root-key.pem is no regular file");
}

#[test]
fn content_that_is_no_root_is_refused() {
    let dir = TempPath::new();
    open(&dir).unwrap();
    let (key, cert) = (dir.path().join("root-key.pem"), dir.path().join("root-cert.pem"));
    let (good_key, good_cert) = (fs::read(&key).unwrap(), fs::read(&cert).unwrap());

    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    let half = &good_key[..good_key.len() / 2];
    for (content, text) in [
        (&b""[..], "holds no private key"),
        (half, "holds no private key"),
        (&good_cert, "holds no private key"),
        (p384.as_bytes(), "holds no P-256 key"),
        (&vec![b'x'; 70_000], "has 70000 bytes"),
    ] {
        fs::write(&key, content).unwrap();
        refused(&dir, text);
    }
    fs::remove_file(&key).unwrap();
    refused(&dir, "root-key.pem is missing although root-cert.pem is there");
    fs::write(&key, &good_key).unwrap();
    set_mode(&key, 0o600);

    let pem = |params: &CertificateParams, key: &KeyPair| params.self_signed(key).unwrap().pem().into_bytes();
    let own = KeyPair::from_pem(std::str::from_utf8(&good_key).unwrap()).unwrap();
    let no_ca = base_params(at(-60), at(60)).unwrap();
    let mut no_signing = root_params(&options()).unwrap();
    no_signing.key_usages = vec![KeyUsagePurpose::CrlSign];
    for (content, text) in [
        (b"junk".to_vec(), "holds no certificate in PEM"),
        (good_key.clone(), "holds no certificate in PEM"),
        (
            pem(&root_params(&options()).unwrap(), &KeyPair::generate().unwrap()),
            "does not belong to root-key.pem",
        ),
        (pem(&no_ca, &own), "may not sign certificates"),
        (pem(&no_signing, &own), "may not sign certificates"),
    ] {
        fs::write(&cert, content).unwrap();
        refused(&dir, text);
    }
    fs::write(&cert, &good_cert).unwrap();
    open(&dir).unwrap();
}

#[test]
fn the_root_key_is_not_printed() {
    let dir = TempPath::new();
    let ca = open(&dir).unwrap();
    let text = format!("{ca:?}");
    assert!(text.starts_with("EmbeddedCa { dir: ") && !text.to_lowercase().contains("key"), "{text}");
}

/// Files of one more root that begins `from` seconds after the tests' present.
struct Second {
    cert: (PathBuf, String),
    key: (PathBuf, String),
    der: CertificateDer<'static>,
}

impl Second {
    fn new(dir: &TempPath, name: &str, from: i64) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = root_params(&options()).unwrap();
        params.not_before = at(from).into();
        let cert = params.self_signed(&key).unwrap();
        let path = |end: &str| dir.path().join(format!("{name}-{end}.pem"));
        Self {
            cert: (path("cert"), cert.pem()),
            key: (path("key"), key.serialize_pem()),
            der: cert.der().clone(),
        }
    }

    fn put((path, text): &(PathBuf, String)) {
        fs::write(path, text).unwrap();
        set_mode(path, 0o600);
    }
}

#[test]
fn of_several_roots_all_are_trusted_and_the_newest_with_a_key_signs() {
    let dir = TempPath::new();
    let first = open(&dir).unwrap().root();
    let (old, new) = (Second::new(&dir, "root-old", -120), Second::new(&dir, "root-new", -30));
    let later = Second::new(&dir, "root-later", 3_600);
    for root in [&old, &new, &later] {
        Second::put(&root.cert);
    }
    let bundle = |ca: &EmbeddedCa| ca.issue(&shop("cart")).unwrap().roots;
    let ca = open(&dir).unwrap();
    assert_eq!(ca.root(), first, "without their keys the others sign nothing");
    assert_eq!(bundle(&ca), [later.der.clone(), new.der.clone(), first.clone(), old.der.clone()]);
    for (root, signs) in [(&old, &first), (&new, &new.der), (&later, &new.der)] {
        Second::put(&root.key);
        assert_eq!(&open(&dir).unwrap().root(), signs, "valid now, and the newest of those");
    }
    fs::remove_file(dir.path().join("root-key.pem")).unwrap();
    fs::remove_file(dir.path().join("root-cert.pem")).unwrap();
    assert_eq!(open(&dir).unwrap().root(), new.der, "the first root is not made again");
    assert_eq!(bundle(&open(&dir).unwrap()).len(), 3);
}

#[test]
fn an_added_root_is_trusted_at_once_and_signs_when_all_have_seen_it() {
    let (dir, start) = (TempPath::new(), Instant::now());
    let ca = open(&dir).unwrap();
    let (first, new) = (ca.root(), Second::new(&dir, "root-2", -30));
    let look = |seconds: u64| ca.refresh(start + Duration::from_secs(seconds)).unwrap();
    let trusted = || ca.issue(&shop("cart")).unwrap().roots.len();
    assert!(!look(0), "nothing has changed");
    Second::put(&new.cert);
    Second::put(&new.key);
    assert!(look(1));
    assert_eq!((ca.root(), trusted()), (first.clone(), 2));
    assert!(!look(2) && !look(5));
    assert!(look(6), "now it signs");
    assert_eq!((ca.root(), trusted()), (new.der.clone(), 2));
    fs::remove_file(dir.path().join("root-cert.pem")).unwrap();
    fs::remove_file(dir.path().join("root-key.pem")).unwrap();
    assert!(look(7));
    assert_eq!((ca.root(), trusted()), (new.der.clone(), 1));
    // Replaced in one go there is nobody to wait for.
    let other = Second::new(&dir, "root-3", -20);
    Second::put(&other.cert);
    Second::put(&other.key);
    fs::remove_file(&new.cert.0).unwrap();
    fs::remove_file(&new.key.0).unwrap();
    assert!(look(8));
    assert_eq!((ca.root(), trusted()), (other.der, 1));
}

#[test]
fn a_key_that_joins_a_trusted_certificate_signs_at_once() {
    let (dir, start) = (TempPath::new(), Instant::now());
    let ca = open(&dir).unwrap();
    let new = Second::new(&dir, "root-2", -30);
    Second::put(&new.cert);
    let look = |seconds: u64| ca.refresh(start + Duration::from_secs(seconds)).unwrap();
    assert!(look(0) && !look(60));
    Second::put(&new.key);
    assert!(look(61));
    assert_eq!(ca.root(), new.der);
}

#[test]
fn a_bad_file_leaves_the_last_good_roots() {
    let (dir, start) = (TempPath::new(), Instant::now());
    let ca = open(&dir).unwrap();
    let (first, new) = (ca.root(), Second::new(&dir, "root-2", -30));
    let other_key = Second::new(&dir, "root-2", -30).key;
    let half = (new.cert.0.clone(), new.cert.1.chars().take(200).collect());
    let twice = (new.cert.0.clone(), format!("{0}{0}", new.cert.1));
    let refused = |text: &str| {
        for seconds in 0..2 {
            let error = ca.refresh(start + Duration::from_secs(seconds)).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        assert_eq!(ca.root(), first);
        assert_eq!(ca.issue(&shop("cart")).unwrap().roots, std::slice::from_ref(&first));
    };
    Second::put(&new.key);
    refused("root-2-cert.pem is missing although root-2-key.pem is there");
    Second::put(&half);
    refused("root-2-cert.pem holds no certificate");
    Second::put(&twice);
    refused("root-2-cert.pem holds more than one certificate");
    Second::put(&new.cert);
    Second::put(&other_key);
    refused("root-2-cert.pem does not belong to root-2-key.pem");
    Second::put(&new.key);
    set_mode(&new.key.0, 0o644);
    refused("root-2-key.pem has mode 0644");
    set_mode(&new.key.0, 0o600);
    set_mode(dir.path(), 0o755);
    refused("has mode 0755");
    set_mode(dir.path(), 0o700);
    let aside = dir.path().with_extension("aside");
    fs::rename(dir.path(), &aside).unwrap();
    refused("cannot be looked at");
    fs::rename(&aside, dir.path()).unwrap();
    assert!(ca.refresh(start).unwrap(), "all is well again");
    assert_eq!(ca.issue(&shop("cart")).unwrap().roots.len(), 2);
    for n in 0..20 {
        Second::put(&Second::new(&dir, &format!("root-{n}"), -30).cert);
    }
    let error = ca.refresh(start).unwrap_err().to_string();
    assert!(error.contains("holds more than 16 roots"), "{error}");
}
