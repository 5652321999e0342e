//! Against Envoy: a foreign implementation of both ends of a tunnel.

use std::net::{Ipv4Addr, SocketAddr};

use culvert_tests::peer::envoy::{FORWARD, start};
use culvert_tests::peer::net::{App, End, connect, expect_bytes, read_end, send_and_be_reset, try_connect};
use culvert_tests::peer::world::{APP, SERVICE, World};
use culvert_tests::peer::{eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bytes of a bulk transfer.
const BULK: usize = 50 << 20;

/// Small requests and answers, half-close, and the end.
async fn talk(client: &mut TcpStream, server: &mut TcpStream) {
    for number in 0..10 {
        let (question, answer) = (format!("question {number}"), format!("answer {number}"));
        client.write_all(question.as_bytes()).await.unwrap();
        expect_bytes(server, question.as_bytes()).await;
        server.write_all(answer.as_bytes()).await.unwrap();
        expect_bytes(client, answer.as_bytes()).await;
    }
    client.shutdown().await.unwrap();
    assert_eq!(read_end(server).await, End::Orderly(Vec::new()));
    server.write_all(b"after your FIN").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(read_end(client).await, End::Orderly(b"after your FIN".to_vec()));
}

/// Bulk both ways at once, compared byte by byte.
async fn bulk(client: &mut TcpStream, server: &mut TcpStream) {
    let data = |seed: u32| {
        // A period that fits no buffer.
        let part: Vec<u8> =
            (0..1_000_003_u32).map(|i| (i.wrapping_mul(seed) >> 13).to_le_bytes()[0]).collect();
        part.into_iter().cycle().take(BULK).collect::<Vec<u8>>()
    };
    let (up, down) = (data(2_654_435_761), data(40_503));
    let ((mut client_in, mut client_out), (mut server_in, mut server_out)) = (client.split(), server.split());
    let (mut got_up, mut got_down) = (vec![0; BULK], vec![0; BULK]);
    let all = async {
        tokio::try_join!(
            client_out.write_all(&up),
            server_out.write_all(&down),
            async { server_in.read_exact(&mut got_up).await.map(|_| ()) },
            async { client_in.read_exact(&mut got_down).await.map(|_| ()) },
        )
    };
    within("bulk both ways", all).await.expect("all bytes");
    assert!(got_up == up && got_down == down, "other bytes than were sent");
}

#[tokio::test]
async fn envoy_as_client_of_our_agent() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let envoy = start(&world);
    let front = SocketAddr::from((Ipv4Addr::LOCALHOST, FORWARD));
    for run in [0, 1] {
        let mut client = connect(&world.peer, front);
        client.write_all(b"first").await.unwrap();
        let (mut server, source) = app.accept().await;
        assert_eq!(source.ip(), world.peer.v4);
        expect_bytes(&mut server, b"first").await;
        if run == 0 { talk(&mut client, &mut server).await } else { bulk(&mut client, &mut server).await }
    }
    let done = |l: &culvert::lab::LogLine| {
        let wanted = [("src.identity", &*world.peer.identity()), ("dst.service", SERVICE)];
        l.has(&wanted) && l.field("error").is_none()
    };
    eventually("a line for the first connection", || world.agent.log().iter().any(done)).await;
    world
        .lab
        .put(
            "policy.yaml",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: closed, namespace: default}\n\
             spec:\n  selector: {matchLabels: {app: pod}}\n",
        )
        .unwrap();
    world.agent.wait_log(0, "the policy in force", |l| l.has(&[("revision", "2")])).unwrap();
    let mut client = connect(&world.peer, front);
    client.write_all(b"refused").await.unwrap();
    let (End::Orderly(got) | End::Reset(got)) = read_end(&mut client).await;
    assert_eq!(got, b"");
    app.assert_untouched();
    eventually("the refusal counted", || {
        world.metric("culvert_refusals_total", &["class=\"policy\""]) >= 1.0
    })
    .await;
    drop(envoy);
}

#[tokio::test]
async fn envoy_as_server_that_our_agent_dials() {
    let world = World::new(&[]);
    let app = App::listen(&world.peer, APP);
    let envoy = start(&world);
    let (mut client, address) = (connect(&world.pod, world.remote()), world.pod.v4);
    client.write_all(b"first").await.unwrap();
    let (mut server, _) = app.accept().await;
    expect_bytes(&mut server, b"first").await;
    talk(&mut client, &mut server).await;
    let line = world.line_from(client.local_addr().unwrap()).await;
    assert!(line.has(&[("dst.identity", &world.peer.identity())]), "{line:?}");
    assert_eq!((line.field("error"), client.local_addr().unwrap().ip()), (None, address.into()));
    let mut client = connect(&world.pod, world.remote());
    client.write_all(b"first").await.unwrap();
    let (mut server, _) = app.accept().await;
    expect_bytes(&mut server, b"first").await;
    bulk(&mut client, &mut server).await;
    // Nobody listens behind Envoy: it answers 503, and the app is told.
    drop((client, server, app));
    world.settle().await;
    // The reset may be quicker than the answer to the connect.
    let connected = (0..20).find_map(|_| try_connect(&world.pod, world.remote()).ok());
    let mut client = connected.expect("a connection");
    send_and_be_reset(&mut client, b"nobody").await;
    let line = world.line_from(client.local_addr().unwrap()).await;
    assert!(line.field("error").unwrap().contains("http status: 503"), "{line:?}");
    drop(envoy);
}
