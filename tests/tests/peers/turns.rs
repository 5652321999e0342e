//! How the streams of one tunnel share it, by the frames that a hand-made client reads.

use std::collections::HashMap;
use std::io::Write as _;

use culvert_tests::peer::client::dial;
use culvert_tests::peer::net::App;
use culvert_tests::peer::raw::{self, ACK, Frame, Raw, kind, setting};
use culvert_tests::peer::tls;
use culvert_tests::peer::world::{APP, World};

/// Read of each stream that is read at all: enough that one whose sender had to wait for a processor is still looked at.
const EACH: usize = 32 << 20;

/// Three streams that always have more take turns in frames of at most 64 KiB, beside one that nobody reads.
#[tokio::test]
async fn ready_streams_alternate_in_small_frames_beside_a_stalled_one() {
    let world = World::new(&[]);
    let app = App::listen(&world.pod, APP);
    let config = tls::client(Some(&world.leaf()), &["h2"]);
    let stream = dial(&world.peer, world.hbone(), config).await.expect("a TLS handshake");
    let mut raw = Raw::greet(stream).await;
    raw.send(&Frame::settings(&[(setting::MAX_FRAME_SIZE, 1 << 20)])).await.unwrap();
    let authority = world.app().to_string();
    let mut sending = Vec::new();
    for id in [1, 3, 5, 7] {
        raw.send(&raw::connect(id, authority.as_bytes())).await.unwrap();
        let mut served = app.accept().await.0.into_std().unwrap();
        served.set_nonblocking(false).unwrap();
        // On a thread of its own, so that its stream is always ready.
        sending.push(std::thread::spawn(move || while served.write_all(&[7; 64 << 10]).is_ok() {}));
    }
    let mut got = HashMap::<u32, usize>::new();
    let (mut last, mut run, mut longest, mut turns, mut frames, mut largest) = (0, 0, 0, 0, 0, 0);
    while [1, 3, 5].iter().any(|id| got.get(id).copied().unwrap_or_default() < EACH) {
        let frame = raw.next().await.expect("an open tunnel");
        match frame.kind {
            kind::DATA => {
                let (id, size) = (frame.stream, frame.payload.len());
                *got.entry(id).or_default() += size;
                // Credit for all but the stalled one, and for the connection.
                let bytes = u32::try_from(size).unwrap();
                if id != 7 && size > 0 {
                    raw.send(&Frame::credit(id, bytes)).await.unwrap();
                }
                let all_are_on =
                    got.len() == 4 && [1, 3, 5].iter().all(|id| got[id] < EACH && got[id] > 1 << 20);
                if all_are_on {
                    frames += 1;
                    largest = largest.max(size);
                    turns += usize::from(id != last);
                    run = if id == last { run + 1 } else { 1 };
                    longest = longest.max(run);
                }
                last = id;
            }
            kind::SETTINGS | kind::PING if frame.flags & ACK == 0 => {
                let payload = if frame.kind == kind::PING { frame.payload } else { Default::default() };
                raw.send(&Frame::new(frame.kind, ACK, 0, payload)).await.unwrap();
            }
            kind::RST_STREAM | kind::GOAWAY => panic!("{frame:?}"),
            _ => {}
        }
    }
    assert!(frames > 40, "{frames} frames looked at");
    assert!(largest <= 64 << 10, "a frame of {largest} bytes while others wait");
    // A stream is passed over while its sender waits for a processor; without turns it would be hundreds in a row.
    assert!(turns * 4 >= frames && longest <= 100, "{turns} turns in {frames} frames, {longest} in a row");
    assert!(got[&7] <= 1 << 20, "the stalled stream got {} bytes, more than its window", got[&7]);
    drop(raw);
    sending.into_iter().for_each(|thread| thread.join().unwrap());
    world.settle().await;
}

/// A client that never finishes its handshake holds a place, and no more places than one source may.
#[tokio::test]
async fn unfinished_handshakes_of_one_source_are_bounded_and_others_are_served() {
    use culvert_tests::peer::client::assert_serves;
    use culvert_tests::peer::net::{End, read_end, try_connect};

    let world = World::new(&["--source-handshakes", "10", "--pod-handshakes", "100"]);
    let _echo = App::listen(&world.pod, APP).echo();
    let tries: Vec<_> = (0..30).map(|_| try_connect(&world.peer, world.hbone())).collect();
    let refused = || world.metric("culvert_budget_refusals_total", &["limit=\"source-handshakes\""]);
    culvert_tests::peer::eventually("twenty are refused", || refused() == 20.0).await;
    let (mut reset, mut silent) = (0, Vec::new());
    for (n, one) in tries.into_iter().enumerate() {
        match one {
            // The reset may be quicker than the answer to the connect.
            Err(_) => reset += 1,
            Ok(one) if n < 10 => silent.push(one),
            Ok(mut one) => reset += usize::from(read_end(&mut one).await == End::Reset(Vec::new())),
        }
    }
    assert_eq!(reset, 20, "the newest are refused, by a reset");
    drop(silent);
    // Their places are free again.
    let open = || world.metric("istio_tcp_sockets_open", &[]);
    culvert_tests::peer::eventually("all have gone", || open() == 0.0).await;
    assert_serves(&world).await;
    world.settle().await;
}
