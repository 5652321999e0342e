//! Messages of gRPC in a body, counted as they pass. Source: gRPC over HTTP/2, Length-Prefixed-Message.

/// Bytes before each message: whether it is compressed, and its length.
const PREFIX: u8 = 5;

/// Counts the messages of one body.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    /// Those whose length is known.
    pub(crate) begun: u64,
    /// Bytes of a prefix that have come, and the length as far as it has.
    seen: u8,
    length: u32,
    /// Bytes of the message that are still to come.
    left: u32,
}

impl Messages {
    /// The next bytes of the body.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skipped = bytes.len().min(self.left as usize);
                self.left -= u32::try_from(skipped).unwrap_or(self.left);
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            // The first byte is a flag; what is shifted out is none of the length.
            self.length = if self.seen == 0 { 0 } else { self.length << 8 | u32::from(*first) };
            self.seen += 1;
            bytes = rest;
            if self.seen == PREFIX {
                self.begun += 1;
                (self.seen, self.left) = (0, self.length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(lengths: &[usize]) -> Vec<u8> {
        let one = |length: &usize| {
            let mut message = vec![0];
            message.extend(u32::try_from(*length).unwrap().to_be_bytes());
            message.extend(std::iter::repeat_n(0xff, *length));
            message
        };
        lengths.iter().flat_map(one).collect()
    }

    proptest! {
        /// However a body is cut into pieces, it has as many messages as were written.
        #[test]
        fn pieces_do_not_matter(lengths in prop::collection::vec(0..700_usize, 0..20), piece in 1..300_usize) {
            let mut messages = Messages::default();
            body(&lengths).chunks(piece).for_each(|chunk| messages.pass(chunk));
            prop_assert_eq!(messages.begun, lengths.len() as u64);
        }

        /// Any bytes are counted without harm.
        #[test]
        fn any_bytes_are_counted(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut messages = Messages::default();
            messages.pass(&bytes);
            prop_assert!(messages.begun <= bytes.len() as u64 / 5);
        }
    }
}
