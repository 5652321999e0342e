use super::*;
use crate::hbone::client::{HandshakeError, OpenError, Tunnel};
use crate::hbone::fixtures::{Mesh, WAIT, connect, local};
use crate::identity::fixtures::shop;
use crate::task::Scope;

/// Waits until the client has read the server's GOAWAY.
async fn closes(tunnel: &Tunnel) {
    while !tunnel.is_closed() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_refusal_carries_status_id_and_class() {
    local(async {
        let mut mesh = Mesh::new(100).await;
        let tunnel = mesh.establish().await.unwrap();
        let slot = tunnel.claim(SystemTime::now()).unwrap();
        let connect = connect();
        let (answer, ()) = tokio::join!(Tunnel::open(&slot, &connect, WAIT), async {
            let request = mesh.requests.recv().await.unwrap();
            assert!(request.is_connect());
            assert_eq!(request.authority(), "10.0.0.1:80");
            assert_eq!(request.headers()["baggage"], "k8s.namespace.name=shop");
            let host = "cart.shop.svc.cluster.local";
            assert_eq!(request.headers()["forwarded"], format!("for=\"10.0.0.2:4242\";host={host}"));
            let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
            assert_eq!(request.headers()["traceparent"], trace);
            let class = crate::hbone::headers::CLASSES[0];
            request.refuse(Refusal { status: StatusCode::UNAUTHORIZED, class }, "id-1");
        });
        match answer.err().unwrap() {
            OpenError::Refused { status, denial: Some(denial) } => {
                assert_eq!(status, StatusCode::UNAUTHORIZED);
                assert_eq!((&*denial.id, denial.class), ("id-1", crate::hbone::headers::CLASSES[0]));
            }
            other => panic!("{other}"),
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_proves_another_identity_is_refused() {
    local(async {
        let mesh = Mesh::new(100).await;
        let error = mesh.tunnel(&shop("db"), mesh.cart.not_after).await.err().unwrap();
        assert!(matches!(error, OpenError::Handshake(HandshakeError::Tls { .. })), "{error}");
    })
    .await;
}

/// As of a listener that closes while connections wait in its queue.
#[tokio::test]
async fn a_handshake_that_is_reset_counts_as_a_refused_connection() {
    local(async {
        let mesh = Mesh::new(100).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = async {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.peek(&mut [0]).await.unwrap(); // what is not read makes its end a reset
        };
        let (error, ()) = tokio::join!(mesh.establish_by(listener.local_addr().unwrap()), server);
        let error = error.err().unwrap();
        assert!(matches!(error, OpenError::Tcp { is_refused: true, .. }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_client_without_alpn_is_refused() {
    local(async {
        let mesh = Mesh::new(100).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut config = (*mesh.cart.client_config(std::slice::from_ref(&mesh.web.identity))).clone();
        config.alpn_protocols.clear();
        let client = async {
            let tcp = TcpStream::connect(addr).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            connector.connect(crate::identity::tls::server_name(), tcp).await
        };
        let server = async {
            let (tcp, from) = listener.accept().await.unwrap();
            accept(tcp, from, mesh.web.server_config(), &mesh.context()).await
        };
        let (_client, accepted) = tokio::join!(client, server);
        let error = accepted.err().unwrap();
        assert!(error.to_string().contains("ALPN"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_drain_sends_goaway_and_lets_open_streams_go_on() {
    local(async {
        let mut mesh = Mesh::new(100).await;
        mesh.accept_all();
        let tunnel = mesh.establish().await.unwrap();
        let slot = tunnel.claim(SystemTime::now()).unwrap();
        let mut stream = Tunnel::open(&slot, &connect(), WAIT).await.unwrap();
        mesh.server.drain();
        closes(&tunnel).await;
        assert!(tunnel.claim(SystemTime::now()).is_none());
        stream.send.send("still here".into()).unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_end_of_the_clients_certificate_sends_goaway() {
    local(async {
        let mesh = Mesh::new(100).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = Mesh { addr: listener.local_addr().unwrap(), ..mesh };
        let server = async {
            let (tcp, from) = listener.accept().await.unwrap();
            accept(tcp, from, other.web.server_config(), &other.context()).await
        };
        let (tunnel, accepted) = tokio::join!(other.establish(), server);
        let (tunnel, mut accepted) = (tunnel.unwrap(), accepted.unwrap());
        assert_eq!((&accepted.peer, accepted.expires), (&other.cart.identity, other.cart.not_after));
        accepted.expires = SystemTime::now();
        let scope = Scope::new();
        let orders = Orders::default();
        let run = accepted.run(&other.limits, scope.draining(), &orders, |_| panic!("nobody asked"));
        // The client's close may reach the server without a TLS farewell: how `run` ends is not the point here.
        tokio::select! {
            () = closes(&tunnel) => {}
            _ended = async { let _ = run.await; std::future::pending::<()>().await } => {}
        }
    })
    .await;
}
