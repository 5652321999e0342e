use proptest::prelude::*;

use super::*;

const OK: Ended = Ended { status: 200, keep: true };

/// Feeds the pieces, then closes; the end, and whether it came before the close.
fn read(pieces: &[&[u8]]) -> Result<(Option<Ended>, bool), Malformed> {
    let mut answer = Answer::default();
    for (number, piece) in pieces.iter().enumerate() {
        if let Some(ended) = answer.feed(piece)? {
            assert_eq!(number + 1, pieces.len(), "ended before the last piece");
            return Ok((Some(ended), true));
        }
    }
    Ok((answer.close(), false))
}

fn whole(text: &str) -> Result<(Option<Ended>, bool), Malformed> {
    read(&[text.as_bytes()])
}

#[test]
fn an_answer_ends_where_its_head_says() {
    let ok = |ended: Ended| Ok((Some(ended), true));
    let gone = Ended { keep: false, ..OK };
    for (text, wanted) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", ok(OK)),
        ("HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n", ok(OK)),
        ("HTTP/1.1 200\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", ok(OK)),
        ("HTTP/1.1 204 No Content\r\n\r\n", ok(Ended { status: 204, ..OK })),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", ok(Ended { status: 304, ..OK })),
        ("HTTP/1.1 503 Busy\r\nContent-Length: 1\r\n\r\nx", ok(Ended { status: 503, ..OK })),
        ("HTTP/1.1 200 OK\r\nConnection: foo, Close\r\nContent-Length: 0\r\n\r\n", ok(gone)),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", ok(gone)),
        ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", ok(OK)),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", ok(OK)),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\nA;x=y\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
            ok(OK),
        ),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", ok(OK)),
        ("HTTP/1.1 200 OK\r\n\r\nup to the end", Ok((Some(gone), false))),
        // Closed too early.
        ("", Ok((None, false))),
        ("HTTP/1.1 200 OK\r\nContent-Len", Ok((None, false))),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", Ok((None, false))),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", Ok((None, false))),
        ("HTTP/1.1 100 Continue\r\n\r\n", Ok((None, false))),
    ] {
        assert_eq!(whole(text), wanted, "{text:?}");
    }
}

#[test]
fn what_is_ambiguous_or_no_http_is_refused() {
    for text in [
        "SSH-2.0-x\r\n",
        "\0\0\0",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxy",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000001\r\nx\r\n0\r\n\r\n",
    ] {
        assert_eq!(whole(text), Err(Malformed), "{text:?}");
    }
}

#[test]
fn a_head_or_line_without_end_is_refused_before_it_costs_memory() {
    for start in ["HTTP/1.1 200 OK\r\nX: ", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "] {
        let mut answer = Answer::default();
        let mut fed = answer.feed(start.as_bytes());
        for _ in 0..HEAD_MAX {
            if fed.is_err() {
                break;
            }
            fed = answer.feed(&[b'x'; 100]);
        }
        assert_eq!(fed, Err(Malformed));
        assert!(answer.pending.len() <= HEAD_MAX, "{}", answer.pending.len());
    }
}

#[test]
fn one_answer_after_another_is_read_on_one_connection() {
    let mut answer = Answer::default();
    for _ in 0..3 {
        assert_eq!(answer.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na"), Ok(None));
        assert_eq!(answer.feed(b"bc"), Ok(Some(OK)));
    }
    assert_eq!(answer.close(), None, "nothing was asked");
}

/// An answer with a body of the bytes, sized or chunked, and with interim answers before it.
fn text(body: &[u8], chunks: Option<usize>, interim: usize) -> Vec<u8> {
    let mut text = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(interim);
    let Some(size) = chunks else {
        text.extend(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).bytes());
        text.extend(body);
        return text;
    };
    text.extend(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in body.chunks(size) {
        text.extend(format!("{:x}\r\n", chunk.len()).bytes());
        text.extend(chunk);
        text.extend(b"\r\n");
    }
    text.extend(b"0\r\nTrailer: 1\r\n\r\n");
    text
}

proptest! {
    /// Wherever packets end, an answer ends with its last byte and no sooner.
    #[test]
    fn pieces_of_any_size_give_the_same_answer(
        body in proptest::collection::vec(any::<u8>(), 0..300),
        chunks in proptest::option::of(1_usize..50),
        interim in 0_usize..3,
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let text = text(&body, chunks, interim);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len())).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(read(&pieces), Ok((Some(OK), true)));
        // Cut short anywhere, it has not ended; with something behind, it is none.
        let short = cuts[cuts.len() / 2].min(text.len() - 1);
        prop_assert_eq!(read(&[&text[..short]]), Ok((None, false)));
        prop_assert_eq!(read(&[&[&text[..], b"x"].concat()]), Err(Malformed));
    }

    /// A changed byte or plain garbage, in pieces: no panic, no more memory than a head's, an end or a refusal.
    #[test]
    fn garbage_is_survived(
        body in proptest::collection::vec(any::<u8>(), 0..100),
        chunks in proptest::option::of(1_usize..50),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        garbage in proptest::collection::vec(any::<u8>(), 0..200),
        size in 1_usize..64,
    ) {
        let mut text = text(&body, chunks, 1);
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        for bytes in [text, garbage] {
            let mut answer = Answer::default();
            for piece in bytes.chunks(size) {
                if !matches!(answer.feed(piece), Ok(None)) {
                    break;
                }
                prop_assert!(answer.pending.len() <= HEAD_MAX);
            }
            let _either = answer.close();
        }
    }
}
