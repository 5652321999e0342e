use std::future::poll_fn;

use super::*;
use crate::hbone::fixtures::{Mesh, PATIENCE, WAIT, Wires, connect, local};

fn key(mesh: &Mesh, uid: &str) -> Key {
    let (identity, expected) = (mesh.cart.identity.clone(), vec![mesh.web.identity.clone()]);
    Key::new("cart-1".into(), identity, WorkloadUid(uid.into()), mesh.addr, expected)
}

async fn open(pool: &Pool, mesh: &Mesh, uid: &str) -> Result<Opened, OpenError> {
    pool.open(&key(mesh, uid), &connect(), WAIT, || mesh.establish()).await
}

#[tokio::test]
async fn streams_share_a_tunnel_until_it_is_full_and_again_when_they_end() {
    local(async {
        let (mut mesh, pool) = (Mesh::new(2).await, Pool::default());
        mesh.accept_all();
        let first = open(&pool, &mesh, "web-1").await.unwrap();
        let second = open(&pool, &mesh, "web-1").await.unwrap();
        assert_eq!((mesh.dials.get(), pool.len()), (1, 1));
        let third = open(&pool, &mesh, "web-1").await.unwrap();
        assert_eq!((mesh.dials.get(), pool.len()), (2, 2), "two streams are all that one tunnel takes");
        drop((first, second));
        let again = [open(&pool, &mesh, "web-1").await.unwrap(), open(&pool, &mesh, "web-1").await.unwrap()];
        assert_eq!((mesh.dials.get(), pool.len()), (2, 2));
        drop((third, again));
    })
    .await;
}

/// Sends as much on a stream as makes its tunnel one of bulk.
async fn pour(opened: &mut Opened) {
    let mut sent = 0;
    while sent < 1 << 20 {
        let credit = poll_fn(|cx| opened.stream.send.poll_credit(cx, 1 << 20)).await.unwrap();
        opened.stream.send.send(vec![0; credit].into()).unwrap();
        sent += credit;
    }
}

#[tokio::test]
async fn a_stream_beside_bulk_has_a_tunnel_of_its_own_but_bulk_beside_bulk_has_not() {
    local(async {
        let (mut mesh, pool) = (Mesh::new(100).await, Pool::default());
        mesh.accept_all();
        let mut bulk = open(&pool, &mesh, "web-1").await.unwrap();
        pour(&mut bulk).await;
        let mut second = open(&pool, &mesh, "web-1").await.unwrap();
        assert_eq!((mesh.dials.get(), pool.len()), (2, 2));
        let third = open(&pool, &mesh, "web-1").await.unwrap();
        assert_eq!((mesh.dials.get(), pool.len()), (2, 2), "small beside small");
        pour(&mut second).await;
        let fourth = open(&pool, &mesh, "web-1").await.unwrap();
        assert_eq!((mesh.dials.get(), pool.len()), (2, 2), "two are enough");
        drop((bulk, second, third, fourth));
    })
    .await;
}

#[tokio::test]
async fn a_stream_whose_own_tunnel_fails_goes_beside_bulk() {
    local(async {
        let (mut mesh, pool) = (Mesh::new(100).await, Pool::default());
        mesh.accept_all();
        let mut bulk = open(&pool, &mesh, "web-1").await.unwrap();
        pour(&mut bulk).await;
        let (key, connect) = (key(&mesh, "web-1"), connect());
        let fail = || async {
            tokio::task::yield_now().await;
            Err(OpenError::Identity("none".to_owned()))
        };
        let (one, two) =
            tokio::join!(pool.open(&key, &connect, WAIT, fail), pool.open(&key, &connect, WAIT, fail));
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(pool.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn another_destination_has_another_tunnel() {
    local(async {
        let (mut mesh, pool) = (Mesh::new(100).await, Pool::default());
        mesh.accept_all();
        let (one, two) = tokio::join!(open(&pool, &mesh, "web-1"), open(&pool, &mesh, "web-2"));
        assert!(one.is_ok() && two.is_ok());
        assert_eq!((mesh.dials.get(), pool.len()), (2, 2), "a reused address never meets an old tunnel");
    })
    .await;
}

#[tokio::test]
async fn all_who_wait_share_one_establishment_and_its_failure() {
    local(async {
        let (mut mesh, pool) = (Mesh::new(100).await, Pool::default());
        mesh.accept_all();
        let (one, two) = tokio::join!(open(&pool, &mesh, "web-1"), open(&pool, &mesh, "web-1"));
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(mesh.dials.get(), 1);

        let (tries, refused) = (Cell::new(0), key(&mesh, "web-9"));
        let fail = || async {
            tries.set(tries.get() + 1);
            tokio::task::yield_now().await;
            Err(OpenError::Identity("none".to_owned()))
        };
        let connect = connect();
        let (one, two) = tokio::join!(
            pool.open(&refused, &connect, WAIT, fail),
            pool.open(&refused, &connect, WAIT, fail),
        );
        assert!(matches!(
            (one.err(), two.err()),
            (Some(OpenError::Identity(_)), Some(OpenError::Identity(_)))
        ));
        assert_eq!(tries.get(), 1);
        assert!(
            pool.open(&refused, &connect, WAIT, || mesh.establish()).await.is_ok(),
            "a failure is not kept"
        );
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_a_cancelled_establishment_tries_itself() {
    local(async {
        let (mut mesh, pool) = (Mesh::new(100).await, Pool::default());
        mesh.accept_all();
        let (key, connect) = (key(&mesh, "web-1"), connect());
        let mut stuck = Box::pin(pool.open(&key, &connect, WAIT, std::future::pending));
        let mut waits = Box::pin(open(&pool, &mesh, "web-1"));
        let both = poll_fn(|cx| {
            let first = stuck.as_mut().poll(cx).is_pending();
            std::task::Poll::Ready(first && waits.as_mut().poll(cx).is_pending())
        });
        assert!(both.await);
        assert_eq!(mesh.dials.get(), 0);
        drop(stuck);
        assert!(waits.await.is_ok());
        assert_eq!(mesh.dials.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_sweep_takes_idle_and_unwanted_tunnels_and_leaves_their_streams() {
    local(async {
        let (mut mesh, pool) = (Mesh::new(100).await, Pool::default());
        mesh.accept_all();
        let mut opened = open(&pool, &mesh, "web-1").await.unwrap();
        pool.sweep(Duration::ZERO, |_| true);
        assert_eq!(pool.len(), 1, "a tunnel with a stream is not idle");
        pool.sweep(PATIENCE, |_| false);
        assert!(pool.is_empty());
        opened.stream.send.send("x".into()).unwrap();
        drop(opened);

        drop(open(&pool, &mesh, "web-1").await.unwrap());
        assert_eq!(mesh.dials.get(), 2);
        pool.sweep(PATIENCE, |_| true);
        assert_eq!(pool.len(), 1, "it was used just now");
        pool.sweep(Duration::ZERO, |_| true);
        assert!(pool.is_empty());
        mesh.client.shut_down(PATIENCE).await;
    })
    .await;
}

#[tokio::test]
async fn an_expired_tunnel_takes_no_streams() {
    local(async {
        let mesh = Mesh::new(100).await;
        let now = SystemTime::now();
        let tunnel = mesh.tunnel(&mesh.web.identity, now + Duration::from_secs(60)).await.unwrap();
        assert!(tunnel.claim(now).is_some() && !tunnel.is_expired(now));
        let later = now + Duration::from_secs(60);
        assert!(tunnel.claim(later).is_none() && tunnel.is_expired(later));
    })
    .await;
}

#[tokio::test]
async fn an_unanswered_stream_is_tried_again_but_not_for_ever() {
    local(async {
        let (mut mesh, pool) = (Mesh::new(100).await, Pool::default());
        let (_, nothing) = tokio::sync::mpsc::unbounded_channel();
        let mut requests = std::mem::replace(&mut mesh.requests, nothing);
        let seen = Rc::new(Cell::new(0));
        let counted = Rc::clone(&seen);
        mesh.server.spawn_local(async move {
            while requests.recv().await.is_some() {
                counted.set(counted.get() + 1); // dropped: the stream is reset
            }
        });
        let error = open(&pool, &mesh, "web-1").await.err().unwrap();
        assert!(matches!(error, OpenError::Lost { .. }), "{error}");
        assert_eq!(seen.get(), TRIES);
    })
    .await;
}

/// Answers every CONNECT but the second, which it keeps; how many it got.
fn keep_the_second(mesh: &mut Mesh) -> Rc<Cell<usize>> {
    let (_, nothing) = tokio::sync::mpsc::unbounded_channel();
    let mut requests = std::mem::replace(&mut mesh.requests, nothing);
    let asked = Rc::new(Cell::new(0));
    let count = Rc::clone(&asked);
    mesh.server.spawn_local(async move {
        let (mut open, mut kept) = (Vec::new(), Vec::new());
        while let Some(request) = requests.recv().await {
            count.set(count.get() + 1);
            if count.get() == 2 { kept.push(request) } else { open.extend(request.accept(None)) }
        }
    });
    asked
}

/// The app is slow, the tunnel lives, as its answer to a PING says: patience is not the end.
#[tokio::test]
async fn a_slow_app_is_waited_for_and_its_tunnel_is_kept_while_others_are_answered() {
    local(async {
        let (mut mesh, pool) = (Mesh::new(100).await, Pool::default());
        let asked = keep_the_second(&mut mesh);
        let key = key(&mesh, "web-1");
        let wait = AnswerWait { limit: Duration::from_millis(900), patience: Duration::from_millis(200) };
        let connect = connect();
        let open = || pool.open(&key, &connect, wait, || mesh.establish());
        let first = open().await.unwrap();
        let (second, third) = tokio::join!(open(), open());
        assert!(matches!(second, Err(OpenError::AnswerTimeout { .. })), "asked once, waited for to the end");
        assert!(third.is_ok());
        assert_eq!((asked.get(), mesh.dials.get(), pool.len()), (3, 1, 1));
        drop(first);
    })
    .await;
}

/// Nothing comes back on an old tunnel, not even to a PING: the CONNECT goes to a new one, and the old takes no more.
#[tokio::test]
async fn a_tunnel_that_answers_nothing_is_replaced() {
    local(async {
        let (mut mesh, pool) = (Mesh::new(100).await, Pool::default());
        mesh.accept_all();
        let wires = Wires::to(mesh.addr).await;
        let (key, connect) = (key(&mesh, "web-1"), connect());
        let wait = AnswerWait { limit: PATIENCE, patience: Duration::from_millis(200) };
        let open = || pool.open(&key, &connect, wait, || mesh.establish_by(wires.addr));
        let first = open().await.unwrap();
        wires.cut();
        let second = open().await.unwrap();
        assert_eq!(mesh.dials.get(), 2);
        let third = open().await.unwrap();
        assert_eq!((mesh.dials.get(), pool.len()), (2, 1), "the silent tunnel takes no streams");
        drop((first, second, third));
    })
    .await;
}
