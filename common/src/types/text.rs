//! Numbers and addresses as text, without the formatting machinery: every log line and every CONNECT has some.

use std::fmt::{self, Write};
use std::net::SocketAddr;

/// Appends `number` as `Display` does.
pub fn push_number(out: &mut String, number: u64) {
    push_padded(out, number, 1);
}

/// Appends `number` with zeros in front, up to `width` digits.
pub fn push_padded(out: &mut String, number: u64, width: usize) {
    let mut digits = Backwards::<20>::new();
    digits.number(number, width);
    out.push_str(digits.text());
}

/// Appends `addr` as `Display` does.
pub fn push_addr(out: &mut String, addr: SocketAddr) {
    match addr {
        SocketAddr::V4(v4) => {
            let mut text = Backwards::<21>::new();
            text.number(v4.port().into(), 1);
            for (octet, before) in v4.ip().octets().into_iter().rev().zip(*b":...") {
                text.byte(before);
                text.number(octet.into(), 1);
            }
            out.push_str(text.text());
        }
        SocketAddr::V6(v6) => {
            let _infallible: fmt::Result = write!(out, "{v6}");
        }
    }
}

/// Appends the last `digits` digits of `number` in lower-case hex.
pub fn push_hex(out: &mut String, mut number: u128, digits: usize) {
    let mut text = Backwards::<32>::new();
    for _ in 0..digits {
        let nibble = (number & 0xf) as u8;
        text.byte(if nibble < 10 { b'0' + nibble } else { b'a' - 10 + nibble });
        number >>= 4;
    }
    out.push_str(text.text());
}

/// ASCII that is written from its end to its beginning.
struct Backwards<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Backwards<N> {
    fn new() -> Self {
        Self { bytes: [0; N], at: N }
    }

    /// What has no room is left out.
    fn byte(&mut self, byte: u8) {
        if let Some(place) = self.at.checked_sub(1).and_then(|at| self.bytes.get_mut(at)) {
            *place = byte;
            self.at -= 1;
        }
    }

    fn number(&mut self, mut number: u64, width: usize) {
        let mut digits = 0;
        while number > 0 || digits < width.min(N) {
            self.byte(b'0' + (number % 10) as u8);
            number /= 10;
            digits += 1;
        }
    }

    fn text(&self) -> &str {
        self.bytes.get(self.at..).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said(push: impl Fn(&mut String)) -> String {
        let mut out = "=".to_owned();
        push(&mut out);
        out
    }

    #[test]
    fn the_ends_of_the_range_are_right() {
        for (number, width, expected) in
            [(0, 1, "=0"), (0, 6, "=000000"), (42, 6, "=000042"), (1_234_567, 6, "=1234567"), (0, 0, "=")]
        {
            assert_eq!(said(|out| push_padded(out, number, width)), expected);
        }
        assert_eq!(said(|out| push_number(out, u64::MAX)), format!("={}", u64::MAX));
        assert_eq!(said(|out| push_padded(out, 7, 99)), "=00000000000000000007");
    }

    proptest! {
        #[test]
        fn all_look_as_the_standard_library_shows_them(number: u64, wide: u128, addr: SocketAddr) {
            prop_assert_eq!(said(|out| push_hex(out, wide, 32)), format!("={wide:032x}"));
            prop_assert_eq!(said(|out| push_hex(out, number.into(), 16)), format!("={number:016x}"));
            prop_assert_eq!(said(|out| push_number(out, number)), format!("={number}"));
            prop_assert_eq!(said(|out| push_padded(out, number % 1_000_000, 6)), format!("={:06}", number % 1_000_000));
            prop_assert_eq!(said(|out| push_addr(out, addr)), format!("={addr}"));
        }
    }
}
