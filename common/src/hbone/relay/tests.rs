use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::*;
use crate::hbone::budget::Budget;
use crate::hbone::fixtures::local;
use crate::hbone::outbox::Piece;
use crate::task::Scope;

/// A relay between an app on loopback TCP and a peer whose HTTP/2 frames the test sends itself.
struct Rig {
    app: TcpStream,
    send: h2::SendStream<Bytes>,
    recv: h2::RecvStream,
    result: oneshot::Receiver<Result<(), RelayError>>,
    board: Board,
    budget: std::sync::Arc<Budget>,
    /// Bytes that were counted from the app, and to it.
    counts: Rc<(Cell<u64>, Cell<u64>)>,
    _scope: Scope,
}

/// The app's end first; both with small buffers.
async fn tcp() -> (TcpStream, TcpStream) {
    let (listener, socket) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
    for one in [&listener, &socket] {
        one.set_send_buffer_size(4096).unwrap();
        one.set_recv_buffer_size(4096).unwrap();
    }
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(1).unwrap();
    let app = socket.connect(listener.local_addr().unwrap()).await.unwrap();
    let ours = listener.accept().await.unwrap().0;
    reset_on_drop(&ours);
    (app, ours)
}

fn reset_on_drop(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn rig(window: u32, limit: u64) -> Rig {
    let scope = Scope::new();
    let (near, far) = tokio::io::duplex(1 << 16);
    let server = async {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(window)
            .initial_connection_window_size(crate::hbone::Http2::default().connection_window);
        let mut connection = builder.handshake::<_, Piece>(near).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let send = respond.send_response(http::Response::new(()), false).unwrap();
        scope.spawn_local(async move { while let Some(Ok(_)) = connection.accept().await {} });
        let outbox = Rc::default();
        Stream {
            send: SendHalf::new(send, &outbox),
            recv: RecvHalf::new(request.into_body(), &outbox),
            window,
        }
    };
    let client = async {
        let (mut client, connection) = h2::client::handshake(far).await.unwrap();
        scope.spawn_local(async move {
            let _ended = connection.await;
        });
        let mut request = http::Request::new(());
        *request.method_mut() = http::Method::CONNECT;
        *request.uri_mut() = "10.0.0.1:80".parse().unwrap();
        let (answer, send) = client.send_request(request, false).unwrap();
        (send, answer.await.unwrap().into_body())
    };
    let (stream, (send, recv)) = tokio::join!(server, client);
    let (app, ours) = tcp().await;
    let budget = Budget::new(limit);
    let (board, counts) = (Board::new(budget.clone()), Rc::<(Cell<u64>, Cell<u64>)>::default());
    let (sender, result) = oneshot::channel();
    let (seats, counted) = (board.clone(), Rc::clone(&counts));
    scope.spawn_local(async move {
        let add = |cell: &Cell<u64>, n| cell.set(cell.get() + n);
        let ended = relay(&ours, stream, &seats, |n| add(&counted.0, n), |n| add(&counted.1, n)).await;
        drop(ours);
        let _test_is_over = sender.send(ended);
    });
    Rig { app, send, recv, result, board, budget, counts, _scope: scope }
}

impl Rig {
    /// What the peer receives next; an empty DATA only carries END_STREAM.
    async fn next(&mut self) -> Option<Result<Bytes, h2::Error>> {
        loop {
            let data = self.recv.data().await;
            let Some(Ok(bytes)) = &data else { return data };
            self.recv.flow_control().release_capacity(bytes.len()).unwrap();
            if !bytes.is_empty() {
                return data;
            }
        }
    }

    /// Sends as long as the peer has credit; returns how much it had.
    async fn fill(&mut self) -> usize {
        let mut sent = 0;
        loop {
            self.send.reserve_capacity(8192);
            let credit = poll_fn(|cx| self.send.poll_capacity(cx));
            let Ok(Some(credit)) = timeout(Duration::from_millis(300), credit).await else { return sent };
            let credit = credit.unwrap();
            self.send.send_data(vec![7; credit].into(), false).unwrap();
            sent += credit;
        }
    }
}

#[tokio::test]
async fn each_direction_closes_on_its_own() {
    local(async {
        let mut rig = rig(1 << 16, 1 << 30).await;
        rig.app.write_all(b"ping").await.unwrap();
        rig.app.shutdown().await.unwrap();
        assert_eq!(rig.next().await.unwrap().unwrap(), "ping");
        assert!(rig.next().await.is_none(), "a FIN is END_STREAM");
        rig.send.send_data("answer".into(), true).unwrap();
        let mut got = Vec::new();
        rig.app.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
        rig.result.await.unwrap().unwrap();
        assert_eq!((rig.counts.0.get(), rig.counts.1.get()), (4, 6));
    })
    .await;
}

#[tokio::test]
async fn the_peer_may_close_first() {
    local(async {
        let mut rig = rig(1 << 16, 1 << 30).await;
        rig.send.send_data(Bytes::new(), true).unwrap();
        assert_eq!(rig.app.read(&mut [0]).await.unwrap(), 0);
        rig.app.write_all(b"late").await.unwrap();
        assert_eq!(rig.next().await.unwrap().unwrap(), "late");
        rig.app.shutdown().await.unwrap();
        assert!(rig.next().await.is_none());
        rig.result.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_reset_of_the_app_is_connect_error() {
    local(async {
        let mut rig = rig(1 << 16, 1 << 30).await;
        reset_on_drop(&rig.app);
        let (unused, _) = tcp().await;
        drop(std::mem::replace(&mut rig.app, unused));
        let error = rig.next().await.unwrap().unwrap_err();
        assert!(error.is_reset());
        assert_eq!(error.reason(), Some(Reason::CONNECT_ERROR));
        assert!(matches!(rig.result.await.unwrap(), Err(RelayError::App(_))));
    })
    .await;
}

#[tokio::test]
async fn a_reset_of_the_stream_resets_the_app() {
    for reason in [Reason::CANCEL, Reason::CONNECT_ERROR, Reason::INTERNAL_ERROR] {
        local(async {
            let mut rig = rig(1 << 16, 1 << 30).await;
            rig.send.send_reset(reason);
            let error = rig.app.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{reason:?}");
            let Err(RelayError::Peer(end)) = rig.result.await.unwrap() else { panic!("{reason:?}") };
            assert_eq!(end, StreamEnd::Reset(reason.into()));
        })
        .await;
    }
}

#[tokio::test]
async fn a_reset_without_error_or_behind_end_stream_is_an_orderly_end() {
    for (ends_first, reason) in [(false, Reason::NO_ERROR), (true, Reason::NO_ERROR), (true, Reason::CANCEL)]
    {
        local(async {
            let mut rig = rig(1 << 16, 1 << 30).await;
            if ends_first {
                rig.send.send_data("all".into(), true).unwrap();
                rig.app.read_exact(&mut [0; 3]).await.unwrap();
                assert_eq!(rig.app.read(&mut [0]).await.unwrap(), 0);
            }
            rig.send.send_reset(reason);
            assert_eq!(rig.app.read(&mut [0]).await.unwrap(), 0, "{reason:?}");
            rig.result.await.unwrap().unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn an_app_that_does_not_read_stops_the_peer_at_its_window() {
    local(async {
        let window = 1 << 16;
        let mut rig = rig(window, 1 << 30).await;
        let sent = rig.fill().await;
        let taken = usize::try_from(rig.counts.1.get()).unwrap();
        assert!(sent <= taken + window as usize, "{sent} bytes sent, {taken} taken");
        rig.send.send_data(Bytes::new(), true).unwrap();
        let mut got = Vec::new();
        rig.app.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), sent);
        assert_eq!(rig.budget.held(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_stalled_stream_over_the_budget_is_reset() {
    local(async {
        let mut rig = rig(1 << 17, 1 << 16).await;
        rig.fill().await;
        rig.board.sweep(Instant::now() + Duration::from_secs(2));
        assert!(matches!(rig.result.await.unwrap(), Err(RelayError::Budget)));
        let error = rig.recv.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
        assert_eq!((rig.budget.held(), rig.budget.resets()), (0, 1));
    })
    .await;
}
#[tokio::test]
async fn single_bytes_close_nothing_and_cost_about_their_size() {
    local(async {
        const COUNT: usize = 60_000;
        let mut rig = rig(1 << 20, 1 << 30).await;
        for _ in 0..COUNT {
            rig.send.send_data(Bytes::from_static(b"x"), false).unwrap();
        }
        rig.send.send_data(Bytes::new(), true).unwrap();
        let mut held = 0;
        for _ in 0..200 {
            held = rig.budget.held().max(held);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(0 < held && held < 2 * COUNT as u64 + 32 * 1024, "{held}");
        let mut got = Vec::new();
        rig.app.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), COUNT);
        rig.app.shutdown().await.unwrap();
        rig.result.await.unwrap().unwrap();
    })
    .await;
}
