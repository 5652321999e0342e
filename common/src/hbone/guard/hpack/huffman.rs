//! The Huffman code of HPACK. Source: RFC 7541 §5.2 and appendix B.

/// Bits of each symbol's code; the last symbol is EOS. The code is canonical, so that lengths say all: codes of one length
/// are consecutive, in the order of their symbols, and longer ones follow.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8,
    7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7,
    7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23,
    24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22,
    23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25,
    26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24,
    20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27,
    27, 27, 27, 26, 30,
];
const SYMBOLS: usize = 257;
const EOS: u16 = 256;
const LONGEST: usize = 30;

struct Table {
    /// Symbols in the order of their codes.
    symbols: [u16; SYMBOLS],
    /// For each length, the first code.
    first: [u32; LONGEST + 1],
    /// For each length, where its symbols begin.
    offset: [u16; LONGEST + 1],
    /// For each length, the end of all codes up to it, as 32 bits from the left.
    end: [u64; LONGEST + 1],
    /// For each next byte, the symbol whose code it begins with and the code's length; 0 for longer codes. Nearly all
    /// that header values are made of is found here.
    short: [(u8, u8); 256],
}

static TABLE: Table = build();

const fn build() -> Table {
    let mut table = Table {
        symbols: [0; SYMBOLS],
        first: [0; LONGEST + 1],
        offset: [0; LONGEST + 1],
        end: [0; LONGEST + 1],
        short: [(0, 0); 256],
    };
    let (mut code, mut at, mut length) = (0_u32, 0_u16, 1);
    while length <= LONGEST {
        code <<= 1;
        table.first[length] = code;
        table.offset[length] = at;
        let mut symbol = 0_u16;
        while symbol <= EOS {
            if LENGTHS[symbol as usize] as usize == length {
                table.symbols[at as usize] = symbol;
                let mut rest = 0;
                while length <= 8 && rest < 1 << (8 - length) {
                    table.short[((code as usize) << (8 - length)) + rest] = (symbol as u8, length as u8);
                    rest += 1;
                }
                at += 1;
                code += 1;
            }
            symbol += 1;
        }
        table.end[length] = (code as u64) << (32 - length);
        length += 1;
    }
    table
}

/// Appends what `coded` says to `out`; `None` for EOS in the text and for wrong padding.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (mut bits, mut have) = (0_u64, 0_u32);
    let mut bytes = coded.iter();
    loop {
        while have <= 56 {
            let Some(byte) = bytes.next() else { break };
            bits |= u64::from(*byte) << (56 - have);
            have += 8;
        }
        if let Some(&(symbol, length @ 1..)) = TABLE.short.get((bits >> 56) as usize)
            && u32::from(length) <= have
        {
            out.push(symbol);
            bits <<= length;
            have -= u32::from(length);
            continue;
        }
        let top = bits >> 32;
        let length = (5..=LONGEST).find(|&l| TABLE.end.get(l).is_some_and(|end| top < *end))?;
        if length > have as usize {
            // Less than a byte of ones: RFC 7541 §5.2.
            let padding = have < 8 && bits.leading_ones() >= have;
            return padding.then_some(());
        }
        let code = u32::try_from(top >> (32 - length)).ok()?;
        let nth = code.checked_sub(*TABLE.first.get(length)?)? as usize;
        let symbol = *TABLE.symbols.get(usize::from(*TABLE.offset.get(length)?) + nth)?;
        out.push(u8::try_from(symbol).ok()?);
        bits <<= length;
        have -= u32::try_from(length).ok()?;
    }
}

/// The code of a text; for tests, as the guard itself writes plain text only.
#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let mut bits = String::new();
    for byte in text {
        let at = TABLE.symbols.iter().position(|s| *s == u16::from(*byte)).unwrap();
        let length = usize::from(LENGTHS[usize::from(*byte)]);
        let code = TABLE.first[length] as usize + at - usize::from(TABLE.offset[length]);
        bits.push_str(&format!("{code:0length$b}"));
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    bits.as_bytes()
        .chunks(8)
        .map(|b| u8::from_str_radix(std::str::from_utf8(b).unwrap(), 2).unwrap())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn padding_is_ones_of_less_than_a_byte_and_eos_is_no_text() {
        let decoded = |coded: &[u8]| {
            let mut out = Vec::new();
            decode(coded, &mut out).map(|()| out)
        };
        assert_eq!(decoded(&[]), Some(Vec::new()));
        assert_eq!(decoded(&[0x1f]), Some(b"a".to_vec())); // 00011, then three ones
        assert_eq!(decoded(&[0x18]), None, "padding of zeros");
        assert_eq!(decoded(&[0x1f, 0xff]), None, "a byte of padding");
        assert_eq!(decoded(&[0xff]), None);
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), None, "EOS");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut out = Vec::new();
            prop_assert_eq!(decode(&encode(&text), &mut out), Some(()));
            prop_assert_eq!(out, text);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(coded in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut out = Vec::new();
            if decode(&coded, &mut out).is_some() {
                prop_assert_eq!(encode(&out), coded);
            }
        }
    }
}
