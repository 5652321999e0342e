use super::*;
use crate::hbone::guard::filtered;
use crate::hbone::guard::hpack::encode;
use proptest::prelude::*;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Head { length: payload.len(), kind, flags, stream }.append(&mut out);
    out.extend_from_slice(payload);
    out
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        encode(&mut out, name.as_bytes(), value.as_bytes());
    }
    out
}

fn settings() -> Vec<u8> {
    frame(kind::SETTINGS, 0, 0, &[])
}

const CONNECT: [(&str, &str); 2] = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];

/// Bytes of a client, with what every client sends first.
fn client(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE.to_vec(), settings(), frames.concat()].concat()
}

/// Bytes of a server, with what every server sends first.
fn server(frames: &[Vec<u8>]) -> Vec<u8> {
    [settings(), frames.concat()].concat()
}

#[track_caller]
fn check(side: Side, bytes: &[u8], expected: &[u8], ended: Option<Violation>) {
    for size in [1, 2, 5, 9, 10, 31, 1000, bytes.len().max(1)] {
        let (seen, violation) = filtered(side, bytes, size);
        assert_eq!(violation, ended, "pieces of {size}");
        if ended.is_none() {
            assert_eq!(seen, expected, "pieces of {size}");
        }
    }
}

#[test]
fn what_is_right_is_handed_on_as_it_came() {
    let frames = [
        frame(kind::SETTINGS, ACK, 0, &[]),
        frame(kind::WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]),
        frame(kind::HEADERS, END_HEADERS, 1, &block(&CONNECT)),
        frame(kind::DATA, 0, 1, &[7; 3000]),
        frame(kind::PING, 0, 0, &[1; 8]),
        frame(kind::DATA, PADDED, 1, &[2, b'x', 0, 0]),
        frame(kind::DATA, END_STREAM, 1, &[]),
        frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]),
        frame(kind::GOAWAY, 0, 0, &[0; 8]),
    ];
    let bytes = client(&frames);
    check(Side::Server, &bytes, &bytes, None);
    let bytes = server(&[frame(kind::HEADERS, END_HEADERS, 1, &block(&[(":status", "200")]))]);
    check(Side::Client, &bytes, &bytes, None);
}

#[test]
fn what_means_nothing_is_dropped() {
    let headers = frame(kind::HEADERS, END_HEADERS, 1, &block(&CONNECT));
    let data = frame(kind::DATA, 0, 1, b"data");
    let empty = frame(kind::DATA, 0, 1, &[]);
    let noise = [frame(0xee, 0xff, 5, &[9; 700]), frame(2, 0, 1, &[0; 5]), empty.clone()].concat();
    let bytes = client(&[noise.clone(), headers.clone(), noise, data.clone(), empty, data.clone()]);
    check(Side::Server, &bytes, &client(&[headers, data.clone(), data]), None);
}

#[test]
fn answers_to_no_ping_are_dropped() {
    let (ping, pong) = (frame(kind::PING, 0, 0, &[1; 8]), frame(kind::PING, ACK, 0, &[1; 8]));
    let mut filter = tunnel(Side::Server);
    let mut out = Vec::new();
    assert_eq!(filter.step(&pong, &mut out), Ok(Step::Drop(17)));
    assert_eq!(filter.sent(&[ping, pong.clone()].concat(), |v| panic!("{v:?}")), Ok(()));
    assert_eq!(filter.step(&pong, &mut out), Ok(Step::Pass(17)));
    assert_eq!(filter.step(&pong, &mut out), Ok(Step::Drop(17)));
}

#[test]
fn header_blocks_come_in_one_piece_and_without_tables() {
    let whole = block(&CONNECT);
    let expected = client(&[frame(kind::HEADERS, END_HEADERS, 1, &whole)]);
    let (a, b) = whole.split_at(20);
    let padded = [&[3, 0, 0, 0, 0, 9][..], &whole, &[0; 3]].concat();
    let literal = [0x41, 11].into_iter().chain(*b"10.0.0.1:80").collect::<Vec<u8>>();
    let method = [0x42, 7].into_iter().chain(*b"CONNECT").collect::<Vec<u8>>();
    for pieces in [
        vec![frame(kind::HEADERS, 0, 1, a), frame(kind::CONTINUATION, END_HEADERS, 1, b)],
        vec![
            frame(kind::HEADERS, 0, 1, &[]),
            frame(kind::CONTINUATION, 0, 1, &whole),
            frame(kind::CONTINUATION, END_HEADERS, 1, &[]),
        ],
        vec![frame(kind::HEADERS, END_HEADERS | PADDED | PRIORITY, 1, &padded)],
        vec![frame(kind::HEADERS, END_HEADERS, 1, &[method.clone(), literal.clone()].concat())],
    ] {
        check(Side::Server, &client(&pieces), &expected, None);
    }
    // The second names what the first has put into the table.
    let first = frame(kind::HEADERS, END_HEADERS, 1, &[method, literal].concat());
    let second = frame(kind::HEADERS, END_HEADERS, 3, &[0xbf, 0xbe]);
    let expected = [expected, frame(kind::HEADERS, END_HEADERS, 3, &whole)].concat();
    check(Side::Server, &client(&[first, second]), &expected, None);
}

#[test]
fn a_long_block_is_handed_on_in_pieces() {
    let long = "x".repeat(15_000);
    let fields = [CONNECT[0], CONNECT[1], ("baggage", &long)];
    let whole = block(&fields);
    let (seen, ended) = filtered(Side::Server, &client(&[frame(1, END_HEADERS, 1, &whole)]), 700);
    assert_eq!((ended, seen), (None, client(&[frame(1, END_HEADERS, 1, &whole)])));
    // `filtered` announces 16 KiB; what a field costs beside its text counts.
    let (seen, ended) = filtered(
        Side::Server,
        &client(&[
            frame(1, 0, 1, &whole),
            frame(kind::CONTINUATION, END_HEADERS, 1, &block(&[("a", &long)])),
        ]),
        700,
    );
    assert_eq!(ended, None);
    assert_eq!(
        seen,
        client(&[frame(1, END_HEADERS, 1, &block(&[("connection", "close")]))]),
        "a stream error"
    );
}

#[test]
fn content_length_and_interim_answers_do_not_reach_the_codec() {
    let answer = |fields: &[(&str, &str)]| frame(kind::HEADERS, END_HEADERS, 1, &block(fields));
    let bytes = server(&[
        answer(&[(":status", "103"), ("link", "x")]),
        answer(&[(":status", "200"), ("content-length", "0"), ("a", "b")]),
    ]);
    check(Side::Client, &bytes, &server(&[answer(&[(":status", "200"), ("a", "b")])]), None);
    let poisoned = server(&[answer(&[("connection", "close")])]);
    for fields in [[(":status", "101"), ("a", "b")], [(":status", "200"), (":path", "/")]] {
        check(Side::Client, &server(&[answer(&fields)]), &poisoned, None);
    }
}

#[test]
fn what_ends_a_tunnel() {
    let headers = |flags| frame(kind::HEADERS, flags, 1, &block(&CONNECT));
    let cases: Vec<(Violation, Vec<u8>)> = vec![
        (Violation::NoSettings, [PREFACE.to_vec(), headers(END_HEADERS)].concat()),
        (Violation::NoSettings, [PREFACE.to_vec(), frame(kind::SETTINGS, ACK, 0, &[])].concat()),
        (Violation::Push, client(&[frame(kind::PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])])),
        (Violation::Protocol, client(&[headers(0), settings()])),
        (Violation::Protocol, client(&[headers(0), frame(kind::CONTINUATION, 0, 3, &[])])),
        (Violation::Protocol, client(&[frame(kind::CONTINUATION, END_HEADERS, 1, &[])])),
        (Violation::Protocol, client(&[frame(kind::HEADERS, END_HEADERS | PADDED, 1, &[9, 0x82])])),
        (Violation::FrameSize, client(&[frame(kind::DATA, 0, 1, &[0; 16_385])])),
        (Violation::FrameSize, client(&[frame(kind::PING, 0, 0, &[0; 7])])),
        (Violation::FrameSize, client(&[frame(kind::SETTINGS, 0, 0, &[0; 7])])),
        (Violation::FrameSize, client(&[frame(kind::SETTINGS, 0, 0, &[0; 1200])])),
        (Violation::FrameSize, client(&[frame(kind::SETTINGS, ACK, 0, &[0; 6])])),
        (Violation::FrameSize, client(&[frame(kind::WINDOW_UPDATE, 0, 0, &[0; 5])])),
        (Violation::FrameSize, client(&[frame(kind::RST_STREAM, 0, 1, &[0; 3])])),
        (Violation::Compression, client(&[frame(kind::HEADERS, END_HEADERS, 1, &[0xff])])),
    ];
    for (violation, bytes) in cases {
        check(Side::Server, &bytes, &[], Some(violation));
    }
    let push = |value| server(&[frame(kind::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, value])]);
    check(Side::Client, &push(1), &[], Some(Violation::Settings));
    check(Side::Client, &push(0), &push(0), None);
    check(Side::Client, &frame(kind::PING, 0, 0, &[0; 8]), &[], Some(Violation::NoSettings));
    check(Side::Server, b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n", None);
}

/// A frozen clock: nothing comes back with time.
fn tunnel(side: Side) -> Filter {
    thread_local!(static START: Instant = Instant::now());
    let mut filter = Filter::new(side, 16_384, 16_384, || START.with(|s| *s));
    let greeting = [if side == Side::Server { PREFACE } else { &[] }, &settings()].concat();
    assert_eq!(feed(&mut filter, &greeting), Ok(()));
    filter
}

fn feed(filter: &mut Filter, mut bytes: &[u8]) -> Result<(), Violation> {
    let mut out = Vec::new();
    while !bytes.is_empty() || filter.is_due() {
        match filter.step(bytes, &mut out)? {
            Step::Pass(n) | Step::Drop(n) | Step::Replace(n) => bytes = &bytes[n..],
            Step::More => panic!("half a frame"),
        }
    }
    Ok(())
}

/// How often a peer may send `bytes` when nothing else happens.
fn allowed(side: Side, bytes: &[u8]) -> (usize, Violation) {
    let mut filter = tunnel(side);
    for count in 0..100_000 {
        if let Err(violation) = feed(&mut filter, bytes) {
            return (count, violation);
        }
    }
    panic!("without end")
}

#[test]
fn floods_end() {
    let rapid = [frame(1, END_HEADERS, 1, &block(&CONNECT)), frame(kind::RST_STREAM, 0, 1, &[0; 4])].concat();
    let interim = frame(kind::HEADERS, END_HEADERS, 1, &block(&[(":status", "103")]));
    let bomb = {
        let mut block = vec![0x40, 1, b'x', 127, 0xa1, 0x1e];
        block.extend([b'v'; 4000]);
        block.extend([0xbe; 10_000]);
        frame(kind::HEADERS, END_HEADERS, 1, &block)
    };
    let window = frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 1, 0]);
    let client = [
        (frame(kind::DATA, 0, 1, &[]), Violation::EmptyData),
        (frame(kind::PING, 0, 0, &[0; 8]), Violation::PingFlood),
        (frame(kind::PING, ACK, 0, &[0; 8]), Violation::PingFlood),
        (window, Violation::SettingsFlood),
        (settings(), Violation::SettingsFlood),
        (frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), Violation::WindowUpdateFlood),
        (frame(2, 0, 1, &[0; 5]), Violation::FrameFlood),
        (frame(0xee, 0, 0, &[0; 16_000]), Violation::FrameFlood),
        (frame(kind::GOAWAY, 0, 0, &[0; 8]), Violation::FrameFlood),
        (rapid, Violation::ResetFlood),
        (bomb.clone(), Violation::HeaderList),
    ];
    for (bytes, violation) in client {
        let (count, ended) = allowed(Side::Server, &bytes);
        assert_eq!(ended, violation);
        assert!((4..=2000).contains(&count), "{violation:?}: {count}");
    }
    assert_eq!(allowed(Side::Client, &interim), (16, Violation::Interim));
    assert_eq!(allowed(Side::Client, &bomb).1, Violation::HeaderList);
    let mut filter = tunnel(Side::Server);
    assert_eq!(feed(&mut filter, &frame(1, 0, 1, &[])), Ok(()));
    let piece = frame(kind::CONTINUATION, 0, 1, b"\x00\x01a\x01b");
    let ended = (0..100).find_map(|_| feed(&mut filter, &piece).err());
    assert_eq!(ended, Some(Violation::Continuation));
    let mut filter = tunnel(Side::Server);
    assert_eq!(feed(&mut filter, &frame(1, 0, 1, &[])), Ok(()));
    let ended =
        (0..100).find_map(|_| feed(&mut filter, &frame(kind::CONTINUATION, 0, 1, &[0; 16_384])).err());
    assert_eq!(ended, Some(Violation::HeaderList));
}

#[test]
fn what_is_earned_is_no_flood() {
    // A byte to the peer, which gives credit for it, twice: to the stream and to the connection.
    let credit = frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).repeat(2);
    let mut filter = tunnel(Side::Server);
    for _ in 0..50_000 {
        assert_eq!(filter.sent(&frame(kind::DATA, 0, 1, b"x"), |v| panic!("{v:?}")), Ok(()));
        assert_eq!(feed(&mut filter, &credit), Ok(()));
    }
    // Streams that are given up after their answer.
    let request = frame(kind::HEADERS, END_HEADERS, 1, &block(&CONNECT));
    let answer = frame(kind::HEADERS, END_HEADERS, 1, &block(&[(":status", "200")]));
    for _ in 0..50_000 {
        assert_eq!(feed(&mut filter, &request), Ok(()));
        assert_eq!(filter.sent(&answer, |v| panic!("{v:?}")), Ok(()));
        assert_eq!(feed(&mut filter, &frame(kind::RST_STREAM, 0, 1, &[0; 4])), Ok(()));
    }
    // Empty DATA and PINGs beside payload.
    let data = [frame(kind::DATA, 0, 1, b"x"), frame(kind::DATA, 0, 1, &[])].concat();
    for _ in 0..50_000 {
        assert_eq!(feed(&mut filter, &data), Ok(()));
    }
}

#[test]
fn provoked_errors_end_and_each_is_told() {
    let reset = |code: u8| frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, code]);
    for (code, told, most) in [(1, true, 200), (3, true, 200), (7, false, 200), (5, false, 4000)] {
        let (mut filter, mut count) = (tunnel(Side::Server), 0);
        let sent = (0..100_000).find(|_| filter.sent(&reset(code), |_| count += 1).is_err());
        assert_eq!(sent, Some(most), "{code}");
        assert_eq!(count, if told { most + 1 } else { 0 }, "{code}");
    }
    let mut filter = tunnel(Side::Server);
    for code in [0, 2, 8, 10, 11] {
        assert_eq!(filter.sent(&reset(code).repeat(10_000), |v| panic!("{v:?}")), Ok(()), "ours: {code}");
    }
    let mut told = Vec::new();
    let goaway = |code: u8| frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, code]);
    assert_eq!(filter.sent(&[goaway(0), goaway(1), goaway(11)].concat(), |v| told.push(v)), Ok(()));
    assert_eq!(told, [Ends::Tunnel(Violation::Protocol), Ends::Tunnel(Violation::Excess)]);
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        Just(block(&CONNECT)),
        Just(block(&[(":status", "200"), ("content-length", "7")])),
        proptest::collection::vec(Just(0_u8), 0..12),
    ];
    (0_u8..11, any::<u8>(), 0_u32..6, payload).prop_map(|(k, f, s, p)| frame(k, f, s, &p))
}

proptest! {
    /// However the bytes are cut, the codec sees the same, and the tunnel ends for the same reason.
    #[test]
    fn cuts_change_nothing(frames in proptest::collection::vec(any_frame(), 0..12), size in 1_usize..80, ours: bool) {
        let (side, bytes) = if ours { (Side::Client, server(&frames)) } else { (Side::Server, client(&frames)) };
        let (whole, ended) = filtered(side, &bytes, bytes.len());
        let (cut, ended_cut) = filtered(side, &bytes, size);
        prop_assert_eq!(ended, ended_cut);
        if ended.is_none() {
            prop_assert_eq!(whole, cut);
        }
    }

    /// What was handed on once is handed on again as it is.
    #[test]
    fn what_is_handed_on_is_right(frames in proptest::collection::vec(any_frame(), 0..12), ours: bool) {
        let (side, bytes) = if ours { (Side::Client, server(&frames)) } else { (Side::Server, client(&frames)) };
        let (seen, _) = filtered(side, &bytes, 64);
        let (again, ended) = filtered(side, &seen, 64);
        prop_assert_eq!(ended, None);
        prop_assert_eq!(again, seen);
    }
}
