//! The two directions of an HTTP/2 stream, for a test that wants all bytes or to know how it ended.

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::within;

/// Sends all of `data` as the other side gives credit.
///
/// **Errors**: the stream or the tunnel is gone.
pub async fn write(stream: &mut SendStream<Bytes>, mut data: &[u8]) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let granted = within("credit", std::future::poll_fn(|cx| stream.poll_capacity(cx))).await;
        let room = match granted {
            Some(room) => room?.min(data.len()),
            None => return Err(Reason::STREAM_CLOSED.into()),
        };
        let (now, later) = data.split_at(room);
        stream.send_data(Bytes::copy_from_slice(now), false)?;
        data = later;
    }
    Ok(())
}

/// Sends END_STREAM.
pub fn finish(stream: &mut SendStream<Bytes>) {
    stream.send_data(Bytes::new(), true).expect("an open stream");
}

/// Reads exactly `expected`, giving credit.
pub async fn expect(stream: &mut RecvStream, expected: &[u8]) {
    let mut got = Vec::new();
    while got.len() < expected.len() {
        let data = within("DATA", stream.data()).await.expect("more DATA").expect("an open stream");
        stream.flow_control().release_capacity(data.len()).expect("credit");
        got.extend_from_slice(&data);
    }
    assert!(got == expected, "other bytes than were sent");
}

/// Reads what begins with `expected`, giving credit.
pub async fn expect_begin(stream: &mut RecvStream, expected: &[u8]) {
    let mut got = Vec::new();
    while got.len() < expected.len() {
        let data = within("DATA", stream.data()).await.expect("more DATA").expect("an open stream");
        stream.flow_control().release_capacity(data.len()).expect("credit");
        got.extend_from_slice(&data);
    }
    assert!(got.starts_with(expected), "other bytes than were sent");
}

/// Reads to the end, giving credit.
///
/// **Errors**: the reason of a reset; INTERNAL_ERROR when the tunnel broke below the stream.
pub async fn read_end(stream: &mut RecvStream) -> Result<Vec<u8>, Reason> {
    let mut got = Vec::new();
    loop {
        match within("the end of a stream", stream.data()).await {
            None => return Ok(got),
            Some(Ok(data)) => {
                stream.flow_control().release_capacity(data.len()).expect("credit");
                got.extend_from_slice(&data);
            }
            Some(Err(e)) => return Err(e.reason().unwrap_or(Reason::INTERNAL_ERROR)),
        }
    }
}
