use std::net::{Ipv4Addr, SocketAddr};

use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject as _;

use std::collections::HashMap;

use super::*;
use crate::identity::EmbeddedOptions;
use crate::identity::fixtures::TempPath;
use crate::identity::messages::{Metadata, Text};
use crate::identity::peer;

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

struct World {
    _dir: TempPath,
    root: CertificateDer<'static>,
    at: SocketAddr,
    scope: Scope,
}

async fn world() -> World {
    let dir = TempPath::new();
    let ca = EmbeddedCa::open_or_create(dir.path(), EmbeddedOptions::new("cluster.local")).unwrap();
    let (root, scope) = (ca.root(), Scope::new());
    let service = CertificateService::new(ca, "localhost", HashSet::from([CLIENT.parse().unwrap()])).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let own = scope.clone();
    scope.spawn(async move { Arc::new(service).serve(listener, &own).await });
    World { _dir: dir, root, at, scope }
}

/// Status and reply of one call.
async fn call(world: &World, path: &str, bytes: Bytes) -> (String, Option<Reply>) {
    let mut roots = RootCertStore::empty();
    roots.add(world.root.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(world.at).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
    world.scope.spawn(async move { drop(connection.await) });
    let request = Request::post(format!("https://localhost{path}")).body(()).unwrap();
    let (response, mut stream) = send.send_request(request, false).unwrap();
    stream.send_data(bytes, true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let status = |map: &HeaderMap| map["grpc-status"].to_str().unwrap().to_owned();
    if response.headers().contains_key("grpc-status") {
        return (status(response.headers()), None);
    }
    let mut body = response.into_body();
    let mut all = BytesMut::new();
    while let Some(piece) = body.data().await {
        all.extend_from_slice(&piece.unwrap());
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    (status(&trailers), Some(Reply::decode(&all[5..]).unwrap()))
}

fn asked(csr: &str, identity: &str) -> Bytes {
    let fields = HashMap::from([(IMPERSONATED.to_owned(), Text { text: identity.to_owned() })]);
    let asked = Asked { csr: csr.to_owned(), validity: 0, metadata: Some(Metadata { fields }) };
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(asked.encoded_len()).unwrap());
    bytes.extend_from_slice(&asked.encode_to_vec());
    bytes.freeze()
}

fn csr() -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    // What it asks for is ignored: only its key counts.
    let params = CertificateParams::new(vec!["other.example".to_owned()]).unwrap();
    (params.serialize_request(&key).unwrap().pem().unwrap(), key)
}

#[tokio::test]
async fn a_listed_identity_gets_a_certificate_for_its_own_key_and_the_root() {
    let world = world().await;
    let (csr, key) = csr();
    let (status, reply) = call(&world, METHOD, asked(&csr, CLIENT)).await;
    assert_eq!(status, "0");
    let chain = reply.unwrap().cert_chain;
    assert_eq!(chain.len(), 2);
    let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    assert_eq!(CertificateDer::from_pem_slice(chain[1].as_bytes()).unwrap(), world.root);
    assert_eq!(peer::peer_identity(Some(std::slice::from_ref(&leaf))).unwrap().to_string(), CLIENT);
    use rcgen::PublicKeyData as _;
    assert_eq!(peer::parse(&leaf).unwrap().public_key().raw, key.subject_public_key_info());
    assert_eq!(world.scope.shut_down(Duration::from_secs(5)).await, 0, "idle connections end at once");
}

#[tokio::test]
async fn what_is_not_allowed_or_not_understood_is_refused() {
    let world = world().await;
    let (csr, _) = csr();
    let other = "spiffe://cluster.local/ns/default/sa/other";
    for (path, bytes, wanted) in [
        (METHOD, asked(&csr, other), Status::PermissionDenied),
        (METHOD, asked(&csr, "not an identity"), Status::InvalidArgument),
        (METHOD, asked("no request", CLIENT), Status::InvalidArgument),
        (METHOD, Bytes::from_static(b"\x00\x00"), Status::InvalidArgument),
        (METHOD, Bytes::from_static(b"\x01\x00\x00\x00\x00"), Status::InvalidArgument),
        (METHOD, Bytes::from_static(b"\x00\x00\x00\x00\x02\xff\xff"), Status::InvalidArgument),
        (METHOD, Bytes::from(vec![0; REQUEST_BYTES_MAX + 1]), Status::InvalidArgument),
        ("/other.Service/Method", asked(&csr, CLIENT), Status::Unimplemented),
    ] {
        let (status, reply) = call(&world, path, bytes).await;
        assert_eq!((status, reply), ((wanted as u16).to_string(), None), "{path}");
    }
}
