use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use rcgen::CertificateSigningRequestParams;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::crypto;
use crate::grpc::{Roots, Secret, Token};
use crate::identity::ca::pem;
use crate::identity::fixtures::{TempPath, put, shop};
use crate::identity::{Ca, CertState, Certs, EmbeddedCa, EmbeddedOptions, IdentityError};
use crate::task::Scope;
use crate::types::SystemClock;

const TOO_LONG: &str = "CSR signing error (requested TTL 24h0m0s is greater than the max allowed TTL 1h0m0s)";
const LIMIT: Duration = Duration::from_secs(5);

/// What the hand-made CA does with a request.
#[derive(Clone)]
enum Does {
    /// Signs for whom it is asked.
    Signs,
    /// The same, but for no longer than an hour, as istiod says it.
    SignsForAnHour,
    /// Signs for somebody else.
    SignsFor(SpiffeId),
    /// Another key's certificate.
    SignsAnotherKey,
    /// These elements.
    Says(Vec<String>),
    /// This status.
    Refuses(u16, &'static str),
    /// An announced length of so many bytes, and nothing after.
    Announces(u32),
    /// Resets the stream.
    Resets,
    /// Ends the connection in the middle of the call.
    Leaves,
    Nothing,
}

/// A CA whose answers a test chooses.
struct Peer {
    dir: TempPath,
    ca: Arc<EmbeddedCa>,
    does: StdMutex<Does>,
    connections: AtomicUsize,
    seen: StdMutex<Vec<(HeaderMap, Asked)>>,
}

struct World {
    peer: Arc<Peer>,
    at: SocketAddr,
    scope: Scope,
}

impl World {
    async fn new(does: Does) -> Self {
        let dir = TempPath::new();
        let ca = EmbeddedCa::open_or_create(dir.path(), EmbeddedOptions::new("cluster.local")).unwrap();
        put(&dir, "token", "first\n");
        put(&dir, "roots.pem", &pem("CERTIFICATE", &ca.root()));
        let peer = Arc::new(Peer {
            dir,
            ca: Arc::new(ca),
            does: StdMutex::new(does),
            connections: AtomicUsize::new(0),
            seen: StdMutex::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (at, scope) = (listener.local_addr().unwrap(), Scope::new());
        scope.spawn(Arc::clone(&peer).serve(listener, scope.clone()));
        Self { peer, at, scope }
    }

    fn does(&self, does: Does) {
        *self.peer.does.lock().unwrap() = does;
    }

    fn file(&self, name: &str) -> PathBuf {
        self.peer.dir.path().join(name)
    }

    fn target(&self) -> Target {
        Target {
            address: format!("https://localhost:{}", self.at.port()).parse().unwrap(),
            roots: Roots::File(self.file("roots.pem")),
            alternative_host: None,
            token: Some(Token::File(self.file("token"))),
            headers: vec![("clusterid".parse().unwrap(), HeaderValue::from_static("east"))],
        }
    }

    fn client(&self) -> IstioCa {
        IstioCa::new(IstioOptions {
            target: self.target(),
            ttl: Duration::from_secs(600),
            impersonates: true,
        })
    }

    fn connections(&self) -> usize {
        self.peer.connections.load(Ordering::Relaxed)
    }
}

impl Peer {
    async fn serve(self: Arc<Self>, listener: TcpListener, scope: Scope) {
        let issued = self.ca.issue_for_host("localhost").unwrap();
        let mut config = ServerConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(issued.chain.clone(), issued.key.expose())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            self.connections.fetch_add(1, Ordering::Relaxed);
            let (peer, acceptor, own) = (Arc::clone(&self), acceptor.clone(), scope.clone());
            scope.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                let (leave, mut leaves) = tokio::sync::mpsc::channel::<()>(1);
                loop {
                    let (request, respond) = tokio::select! {
                        Some(Ok(accepted)) = connection.accept() => accepted,
                        _ = leaves.recv() => return,
                        else => return,
                    };
                    let (peer, leave) = (Arc::clone(&peer), leave.clone());
                    own.spawn(async move {
                        if !peer.answer(request, respond).await {
                            leave.send(()).await.unwrap();
                        }
                    });
                }
            });
        }
    }

    /// Whether the connection stays.
    async fn answer(
        &self,
        request: Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
    ) -> bool {
        assert_eq!(request.uri().path(), METHOD);
        let (head, mut body) = request.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(Ok(piece)) = body.data().await {
            bytes.extend_from_slice(&piece);
        }
        let asked = Asked::decode(&bytes[5..]).unwrap();
        let name = asked.metadata.as_ref().map(|m| m.fields[IMPERSONATED].text.clone());
        self.seen.lock().unwrap().push((head.headers, asked.clone()));
        let sign = |id: &SpiffeId, csr: &str| {
            let chain = self.ca.sign(id, csr).unwrap();
            let all = chain.iter().chain([&self.ca.root()]).map(|cert| pem("CERTIFICATE", cert)).collect();
            Reply { cert_chain: all }.encode_to_vec()
        };
        let id = || name.as_ref().unwrap().parse::<SpiffeId>().unwrap();
        let does = match self.does.lock().unwrap().clone() {
            Does::SignsForAnHour if asked.validity > 3600 => Does::Refuses(3, TOO_LONG),
            Does::SignsForAnHour => Does::Signs,
            does => does,
        };
        let (message, length) = match does {
            Does::Signs | Does::SignsForAnHour => (sign(&id(), &asked.csr), None),
            Does::SignsFor(other) => (sign(&other, &asked.csr), None),
            Does::SignsAnotherKey => {
                let key = KeyPair::generate().unwrap();
                let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
                (sign(&id(), &csr), None)
            }
            Does::Says(cert_chain) => (Reply { cert_chain }.encode_to_vec(), None),
            Does::Announces(length) => (Vec::new(), Some(length)),
            Does::Refuses(code, text) => {
                let answer = Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", code)
                    .header("grpc-message", text);
                respond.send_response(answer.body(()).unwrap(), true).unwrap();
                return true;
            }
            Does::Resets => {
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
                return true;
            }
            Does::Leaves => return false,
            Does::Nothing => std::future::pending().await,
        };
        let answer = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut stream = respond.send_response(answer, false).unwrap();
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(length.unwrap_or(u32::try_from(message.len()).unwrap()));
        framed.extend_from_slice(&message);
        stream.send_data(framed.freeze(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        stream.send_trailers(trailers).unwrap();
        true
    }
}

/// The error's text with its causes.
fn told(error: &CaError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Through all checks, as the agent fetches.
async fn fetch(ca: IstioCa, id: &SpiffeId) -> Result<(), String> {
    let certs = Certs::new(Ca::Istio(Box::new(ca)), Arc::new(SystemClock));
    let scope = Scope::new();
    scope.spawn(Arc::clone(&certs).run());
    certs.want([id.clone()].into());
    let mut told = None;
    for _ in 0..400 {
        let status = certs.status().remove(0);
        match (status.state, status.error) {
            (CertState::Available, _) => return Ok(()),
            (_, Some(error)) => {
                told = Some(error);
                break;
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    Err(told.expect("an answer within seconds"))
}

#[tokio::test]
async fn a_certificate_is_asked_for_with_token_cluster_and_identity() {
    let world = World::new(Does::Signs).await;
    let ca = world.client();
    let issued = ca.issue(&shop("cart")).await.unwrap();
    assert_eq!(issued.roots, [world.peer.ca.root()]);
    put(&world.peer.dir, "token", "second");
    ca.issue(&shop("pay")).await.unwrap();
    assert_eq!(world.connections(), 1, "one connection serves all");
    let seen = world.peer.seen.lock().unwrap();
    let header = |n: usize, name: &str| seen[n].0[name].to_str().unwrap().to_owned();
    assert_eq!((header(0, "authorization"), header(0, "clusterid")), ("Bearer first".into(), "east".into()));
    assert_eq!(header(1, "authorization"), "Bearer second", "a rotated token is taken with the next call");
    let asked = &seen[0].1;
    assert_eq!((asked.validity, asked.metadata.as_ref().unwrap().fields.len()), (600, 1));
    let csr = CertificateSigningRequestParams::from_pem(&asked.csr).unwrap();
    let names = csr.params.subject_alt_names;
    assert!(matches!(&names[..], [SanType::URI(uri)] if uri.as_str() == shop("cart").to_string()));
    assert_eq!(csr.params.distinguished_name, DistinguishedName::new());
}

/// Source: istiod, where SECRET_TTL is more than its MAX_WORKLOAD_CERT_TTL.
#[tokio::test]
async fn a_ca_with_a_shorter_limit_is_asked_for_that() {
    let world = World::new(Does::SignsForAnHour).await;
    let options = IstioOptions { ttl: Duration::from_hours(24), ..world.client().options };
    let ca = IstioCa::new(options.clone());
    for name in ["cart", "pay"] {
        ca.issue(&shop(name)).await.unwrap();
    }
    let asked = |world: &World| -> Vec<i64> {
        let mut seen = world.peer.seen.lock().unwrap();
        seen.drain(..).map(|(_, asked)| asked.validity).collect()
    };
    assert_eq!(asked(&world), [86_400, 3600, 3600], "the limit is remembered");
    // One that names no limit, and never agrees: a few tries, then the refusal.
    world.does(Does::Refuses(3, "TTL too long"));
    let refused = told(&IstioCa::new(options.clone()).issue(&shop("cart")).await.unwrap_err());
    assert!(refused.contains("TTL too long"), "{refused}");
    assert_eq!(asked(&world), [86_400, 0, 43_200, 21_600, 10_800, 5400]);
    // What is refused for another reason is not asked again.
    for (code, text) in [(3, "malformed CSR"), (7, "no TTL for you")] {
        world.does(Does::Refuses(code, text));
        IstioCa::new(options.clone()).issue(&shop("cart")).await.unwrap_err();
        assert_eq!(asked(&world), [86_400], "{text}");
    }
}

#[tokio::test]
async fn an_agent_of_one_workload_asks_for_itself() {
    let world = World::new(Does::SignsFor(shop("cart"))).await;
    let options = IstioOptions { impersonates: false, ..world.client().options };
    fetch(IstioCa::new(options), &shop("cart")).await.unwrap();
    assert!(world.peer.seen.lock().unwrap()[0].1.metadata.is_none());
}

#[tokio::test]
async fn what_a_ca_must_not_answer_is_refused_and_said() {
    let world = World::new(Does::Signs).await;
    fetch(world.client(), &shop("cart")).await.unwrap();
    let root = pem("CERTIFICATE", &world.peer.ca.root());
    let expired = {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        params.subject_alt_names = vec![SanType::URI(shop("cart").to_string().try_into().unwrap())];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.self_signed(&key).unwrap().pem()
    };
    for (does, wanted) in [
        (Does::SignsFor(shop("thief")), "does not prove it"),
        (Does::SignsAnotherKey, "cannot be used"),
        (Does::Says(vec![]), "it holds no certificate"),
        (Does::Says(vec![root.clone()]), "it holds one element"),
        (Does::Says(vec!["garbage".into(), root.clone()]), "its chain holds no certificate"),
        (Does::Says(vec![root.clone(), "garbage".into()]), "its root holds no certificate"),
        (Does::Says(vec![root.repeat(50), root.clone()]), "more than 10 certificates"),
        (Does::Says(vec![root.clone(), root.repeat(200)]), "more than 100 certificates"),
        (Does::Says(vec![pem("CERTIFICATE", b"\x30\x00"), root.clone()]), "cannot be read"),
        (Does::Says(vec![root.clone(), root.clone()]), "no URI name"),
        (Does::Says(vec![expired, root.clone()]), "not valid now"),
        (Does::Says(vec!["x".repeat(2 << 20)]), "at most 1048576 are taken"),
        (Does::Announces(u32::MAX), "at most 1048576 are taken"),
        (Does::Announces(1_000), "without a status"),
        (Does::Refuses(16, "impersonation"), "UNAUTHENTICATED: impersonation; check the token"),
        (Does::Refuses(7, "no"), "PERMISSION_DENIED: no"),
        (Does::Resets, "broke"),
        (Does::Leaves, "broke"),
    ] {
        world.does(does);
        let error = fetch(world.client(), &shop("cart")).await.unwrap_err();
        assert!(error.contains(wanted), "wanted {wanted:?}, got {error:?}");
    }
}

#[tokio::test]
async fn a_connection_that_ended_unnoticed_is_made_anew_without_a_failure() {
    let world = World::new(Does::Signs).await;
    let ca = world.client();
    ca.issue(&shop("cart")).await.unwrap();
    world.does(Does::Leaves);
    let error = ca.issue(&shop("cart")).await.unwrap_err();
    assert_eq!((error.reason(), world.connections()), ("broken", 2), "tried once more, and no more");
    world.does(Does::Signs);
    ca.issue(&shop("cart")).await.unwrap();
}

#[tokio::test]
async fn a_new_root_file_means_a_new_connection() {
    let world = World::new(Does::Signs).await;
    let ca = world.client();
    ca.issue(&shop("cart")).await.unwrap();
    let good = std::fs::read_to_string(world.file("roots.pem")).unwrap();
    let other =
        EmbeddedCa::open_or_create(&world.file("other"), EmbeddedOptions::new("cluster.local")).unwrap();
    put(&world.peer.dir, "roots.pem", &pem("CERTIFICATE", &other.root()));
    let error = ca.issue(&shop("cart")).await.unwrap_err();
    assert_eq!(error.reason(), "unknown_root");
    assert!(
        told(&error).contains("was signed by none of the roots in") && told(&error).contains("roots.pem")
    );
    std::fs::remove_file(world.file("roots.pem")).unwrap();
    let error = ca.issue(&shop("cart")).await.unwrap_err();
    assert!(told(&error).contains("roots.pem cannot be read"), "{}", told(&error));
    put(&world.peer.dir, "roots.pem", &format!("{}{good}", pem("CERTIFICATE", &other.root())));
    ca.issue(&shop("cart")).await.unwrap();
}

#[tokio::test]
async fn targets_that_cannot_be_used_are_named() {
    let world = World::new(Does::Signs).await;
    let issue = async |change: &dyn Fn(&mut Target)| {
        let mut options = world.client().options;
        change(&mut options.target);
        IstioCa::new(options).issue(&shop("cart")).await.map(drop)
    };
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let address = |text: String| move |target: &mut Target| target.address = text.parse().unwrap();
    let port = world.at.port();
    let missing = world.file("missing");
    put(&world.peer.dir, "empty", " \n");
    let empty = world.file("empty");
    for (change, reason, wanted) in [
        (
            &address(format!("https://127.0.0.1:{port}")) as &dyn Fn(&mut Target),
            "wrong_name",
            "not valid for that name but for",
        ),
        (&address(format!("https://localhost:{}", closed.port())), "refused", "does not take connections"),
        (&address(format!("http://localhost:{port}")), "broken", "broke"),
        (&|t: &mut Target| t.token = Some(Token::File(missing.clone())), "token", "missing cannot be read"),
        (&|t: &mut Target| t.token = Some(Token::File(empty.clone())), "token", "empty is empty"),
        (
            &|t: &mut Target| t.roots = Roots::Pem("nothing".into()),
            "settings",
            "no root certificate in the PEM text",
        ),
    ] {
        let error = issue(change).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{}", told(&error));
        assert!(told(&error).contains(wanted), "wanted {wanted:?}, got {:?}", told(&error));
    }
    // A certificate of another name passes where that name is expected too.
    issue(&|target| {
        target.address = format!("https://127.0.0.1:{port}").parse().unwrap();
        target.alternative_host = Some("localhost".to_owned());
        target.token = Some(Token::Literal(Secret::new("a.b.c".to_owned())));
    })
    .await
    .unwrap();
    assert_eq!(world.peer.seen.lock().unwrap().last().unwrap().0["authorization"], "Bearer a.b.c");
    let shown = format!("{:?}", Token::Literal(Secret::new("a.b.c".to_owned())));
    assert!(!shown.contains("a.b.c"), "{shown}");
}

#[tokio::test]
async fn while_the_ca_is_silent_a_connection_is_held_and_then_told_why() {
    let world = World::new(Does::Nothing).await;
    let certs = Certs::new(Ca::Istio(Box::new(world.client())), Arc::new(SystemClock));
    world.scope.spawn(Arc::clone(&certs).run());
    let error = certs.wait(&shop("cart"), Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, IdentityError::Timeout { .. }), "{error}");
    world.does(Does::Refuses(14, "starting"));
    let error = certs.wait(&shop("pay"), Duration::from_millis(1_000)).await.unwrap_err();
    assert!(error.to_string().contains("UNAVAILABLE: starting"), "{error}");
    assert!(!certs.status().iter().any(|status| status.is_refused), "it may come back");
    world.does(Does::Signs);
    certs.wait(&shop("pay"), LIMIT).await.unwrap();
}

#[tokio::test]
async fn all_who_wait_share_one_failed_attempt() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let world = World::new(Does::Signs).await;
    let mut options = world.client().options;
    options.target.address =
        format!("https://localhost:{}", silent.local_addr().unwrap().port()).parse().unwrap();
    let (ca, accepted) = (Arc::new(IstioCa::new(options)), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&accepted);
    world.scope.spawn(async move {
        while let Ok((stream, _)) = silent.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    });
    let (tell, mut told) = tokio::sync::mpsc::channel(8);
    for n in 0..8 {
        let (ca, tell) = (Arc::clone(&ca), tell.clone());
        world.scope.spawn(async move {
            let failed = ca.issue(&shop(&format!("s{n}"))).await.is_err();
            tell.send(failed).await.unwrap();
        });
    }
    for _ in 0..8 {
        assert!(told.recv().await.unwrap());
    }
    assert!(accepted.load(Ordering::Relaxed) < 8, "{accepted:?} attempts");
}
