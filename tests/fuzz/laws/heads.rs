//! What holds for heads of HTTP/1.1: where they end, and what writing one more time may add.

use waypoint::http1::head::{self, BadHead, End};

/// Header lines that a written message may have more than the one that was read.
pub(crate) const ROOM: usize = 2;

/// The bytes up to the end of a head, which is the same however they come.
pub(crate) fn head_of(bytes: &[u8], max: usize) -> Option<&[u8]> {
    let whole = End::default().find(bytes, max);
    let mut search = End::default();
    let in_pieces = (0..=bytes.len()).map(|cut| search.find(&bytes[..cut], max));
    let found = in_pieces.into_iter().find(|found| !matches!(found, Ok(None))).unwrap_or(Ok(None));
    assert_eq!(found, whole, "piece by piece");
    whole.ok().flatten().map(|length| &bytes[..length])
}

/// A written head has one end: its own.
pub(crate) fn is_one(text: &[u8]) {
    let found = End::default().find(text, head::RESPONSE_MAX);
    assert!(found == Ok(Some(text.len())) || found == Err(BadHead::TooLarge), "{text:?}: {found:?}");
}
