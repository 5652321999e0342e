//! How streams and connections end, with our agent as the server of the tunnel.

use culvert_tests::peer::client::{Answer, Tunnel, assert_serves, dial};
use culvert_tests::peer::net::{self, App, End, expect_bytes, read_end};
use culvert_tests::peer::raw::{self, Frame, Raw, kind};
use culvert_tests::peer::world::{APP, World};
use culvert_tests::peer::{tls, within};
use h2::Reason;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// A tunnel with one open stream, and the app's end of it.
async fn pair(world: &World, app: &App) -> (Tunnel, Answer, TcpStream) {
    let mut tunnel = Tunnel::open(world).await;
    let authority = world.app().to_string();
    let (stream, (served, _)) = tokio::join!(tunnel.connect(&authority), app.accept());
    (tunnel, stream, served)
}

#[tokio::test]
async fn a_reset_stream_is_a_reset_to_the_app() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    for reason in [Reason::CANCEL, Reason::CONNECT_ERROR, Reason::INTERNAL_ERROR, Reason::REFUSED_STREAM] {
        let (tunnel, mut stream, mut served) = pair(&world, &app).await;
        stream.write(b"half of it").await;
        expect_bytes(&mut served, b"half of it").await;
        stream.send.send_reset(reason);
        assert_eq!(read_end(&mut served).await, End::Reset(Vec::new()), "{reason:?}");
        let line = world.line_from(tunnel.local).await;
        assert!(line.field("error").unwrap().contains(&format!("{reason:?}")), "{line:?}");
        assert!(line.has(&[("bytes_recv", "10"), ("bytes_sent", "0")]), "{line:?}");
    }
    world.settle().await;
}

#[tokio::test]
async fn no_error_is_an_orderly_end() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let (_tunnel, mut stream, mut served) = pair(&world, &app).await;
    stream.write(b"all of it").await;
    expect_bytes(&mut served, b"all of it").await;
    stream.send.send_reset(Reason::NO_ERROR);
    assert_eq!(read_end(&mut served).await, End::Orderly(Vec::new()));
    drop(served);
    world.settle().await;
}

#[tokio::test]
async fn a_reset_after_end_stream_takes_nothing_back() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    for reason in [Reason::NO_ERROR, Reason::CANCEL] {
        let (_tunnel, mut stream, mut served) = pair(&world, &app).await;
        stream.write(b"all of it").await;
        stream.finish();
        assert_eq!(read_end(&mut served).await, End::Orderly(b"all of it".to_vec()));
        stream.send.send_reset(reason);
        // The app sees what it was sent and no error, whenever it closes.
        drop(served);
        world.settle().await;
    }
}

#[tokio::test]
async fn a_reset_of_the_app_is_connect_error_to_the_peer() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let (tunnel, mut stream, mut served) = pair(&world, &app).await;
    served.write_all(b"half of it").await.unwrap();
    stream.expect(b"half of it").await;
    net::reset(served);
    assert_eq!(stream.read_end().await, Err(Reason::CONNECT_ERROR));
    let line = world.line_from(tunnel.local).await;
    assert!(line.field("error").is_some(), "{line:?}");
    world.settle().await;
}

#[tokio::test]
async fn each_direction_closes_on_its_own() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let large: Vec<u8> = (0..3_000_000_u32).map(|i| (i >> 7) as u8).collect();
    for peer_first in [true, false] {
        let (tunnel, mut stream, mut served) = pair(&world, &app).await;
        if peer_first {
            stream.write(b"that is all").await;
            stream.finish();
            assert_eq!(read_end(&mut served).await, End::Orderly(b"that is all".to_vec()));
            let (_, got) = tokio::join!(
                async {
                    served.write_all(&large).await.unwrap();
                    served.shutdown().await.unwrap();
                },
                stream.read_end()
            );
            assert!(got.unwrap() == large);
        } else {
            served.write_all(b"that is all").await.unwrap();
            served.shutdown().await.unwrap();
            assert_eq!(stream.read_end().await, Ok(b"that is all".to_vec()));
            let ((), got) = tokio::join!(
                async {
                    stream.write(&large).await;
                    stream.finish();
                },
                read_end(&mut served)
            );
            assert!(got == End::Orderly(large.clone()));
        }
        let line = world.line_from(tunnel.local).await;
        assert_eq!(line.field("error"), None, "{line:?}");
        let counted = ["bytes_sent", "bytes_recv"].map(|f| line.field(f).unwrap());
        let expected = if peer_first { ["3000000", "11"] } else { ["11", "3000000"] };
        assert_eq!(counted, expected);
    }
}

#[tokio::test]
async fn a_cut_tunnel_is_a_reset_to_every_app_behind_it() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let authority = world.app().to_string();
    for how in ["TCP reset", "FIN without close_notify", "close_notify", "GOAWAY and close", "bad frame"] {
        let config = tls::client(Some(&world.leaf()), &["h2"]);
        let stream = dial(&world.peer, world.hbone(), config).await.unwrap();
        let mut raw = Raw::greet(stream).await;
        let mut served = Vec::new();
        for stream in [1, 3] {
            raw.send(&raw::connect(stream, authority.as_bytes())).await.unwrap();
            served.push(app.accept().await.0);
            assert_eq!(raw.outcome(stream).await.unwrap().status(), Some(200));
            raw.send(&Frame::new(kind::DATA, 0, stream, b"half".to_vec())).await.unwrap();
            expect_bytes(served.last_mut().unwrap(), b"half").await;
        }
        // Kept until the apps have seen the end, which must not come from a socket that was closed.
        let mut kept = None;
        match how {
            "TCP reset" => net::reset(raw.into_inner().into_inner().0),
            "FIN without close_notify" => {
                let mut tcp = raw.into_inner().into_inner().0;
                tcp.shutdown().await.unwrap();
                kept = Some(tcp);
            }
            "bad frame" => {
                raw.send(&Frame::new(kind::SETTINGS, 0, 0, b"odd".to_vec())).await.unwrap();
                let goaway = raw.find(|f| f.kind == kind::GOAWAY).await.unwrap();
                assert_ne!(goaway.goaway_reason(), Reason::NO_ERROR);
            }
            _ => {
                if how.starts_with("GOAWAY") {
                    raw.send(&Frame::goaway(0, Reason::NO_ERROR)).await.unwrap();
                }
                let mut stream = raw.into_inner();
                stream.shutdown().await.unwrap();
                kept = Some(stream.into_inner().0);
            }
        }
        for mut served in served {
            assert_eq!(read_end(&mut served).await, End::Reset(Vec::new()), "{how}");
        }
        drop(kept);
    }
    world.settle().await;
    let _echo = app.echo();
    assert_serves(&world).await;
}

#[tokio::test]
async fn a_stream_given_up_before_its_answer_opens_nothing_for_long() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let mut tunnel = Tunnel::open(&world).await;
    let ask = culvert_tests::peer::client::request(&world.app().to_string());
    let (answer, mut send) = tunnel.send(ask).await.unwrap();
    send.send_reset(Reason::CANCEL);
    drop(answer);
    // Either the agent had not dialled yet, or the app sees a reset at once: never an orderly request.
    world.settle().await;
    let (stream, (mut served, _)) = {
        let authority = world.app().to_string();
        let mut connect = Box::pin(tunnel.connect(&authority));
        let mut first = within("either", async {
            tokio::select! { _ = &mut connect => None, accepted = app.accept() => Some(accepted) }
        })
        .await;
        let stream = connect.await;
        loop {
            let (mut served, peer) = match first.take() {
                Some(accepted) => accepted,
                None => app.accept().await,
            };
            // A leftover of the first stream is reset before anything can be written to it.
            if tokio::time::timeout(std::time::Duration::from_millis(50), read_end(&mut served))
                .await
                .is_err()
            {
                break (stream, (served, peer));
            }
        }
    };
    let mut stream = stream;
    stream.write(b"second").await;
    expect_bytes(&mut served, b"second").await;
}
