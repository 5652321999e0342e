//! Which server a TLS client asks for, from the first bytes that it sends. Pure. Source: RFC 8446 §4.1.2 and §5.1, RFC 6066 §3.

/// Bytes in which a client's first message must be whole.
const HELLO_MAX: usize = 16 * 1024;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// They may yet become anything: more must come.
    Open,
    /// A TLS client's first message, with the name it asks for, in lower case.
    Tls(Option<String>),
    /// Something else.
    Other,
    /// A TLS client's first message that others could read differently, or that is too long.
    Bad,
}

/// What `bytes` are, all that has come so far.
pub fn read(bytes: &[u8]) -> Hello {
    match bytes {
        [] | [22] => return Hello::Open,
        [22, 3, ..] => {}
        _ => return Hello::Other,
    }
    let (mut message, mut rest) = (Vec::new(), bytes);
    loop {
        if let Some(body) = whole(&message) {
            return body.and_then(server_name).map_or(Hello::Bad, Hello::Tls);
        }
        match rest {
            // A record of a handshake: a message may take several.
            [22, 3, _, high, low, after @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 || length > HELLO_MAX || message.len() + length > HELLO_MAX {
                    return Hello::Bad;
                }
                let (fragment, after) = after.split_at(length.min(after.len()));
                message.extend_from_slice(fragment);
                // What has come of a record may be enough: the rest of it is another message.
                rest = if fragment.len() == length { after } else { &[] };
            }
            [] | [22] | [22, 3] | [22, 3, _] | [22, 3, _, _] => {
                let is_long = bytes.len() >= HELLO_MAX;
                return if is_long { Hello::Bad } else { Hello::Open };
            }
            _ => return Hello::Bad,
        }
    }
}

/// The body of a client's hello once it is whole; an error if it is another message.
fn whole(message: &[u8]) -> Option<Option<&[u8]>> {
    match message {
        [] => None,
        [1, a, b, c, body @ ..] => {
            let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).ok()?;
            if length > HELLO_MAX { Some(None) } else { body.get(..length).map(Some) }
        }
        [1, ..] => None,
        _ => Some(None),
    }
}

/// The name in a hello, if it has one; none if the hello is broken.
fn server_name(body: &[u8]) -> Option<Option<String>> {
    // Version and random, session, cipher suites, compression.
    let rest = body.get(34..)?;
    let (_, rest) = sized::<1>(rest)?;
    let (_, rest) = sized::<2>(rest)?;
    let (_, rest) = sized::<1>(rest)?;
    if rest.is_empty() {
        return Some(None);
    }
    let (mut extensions, rest) = sized::<2>(rest)?;
    if !rest.is_empty() {
        return None;
    }
    let mut found = None;
    while let [high, low, after @ ..] = extensions {
        let (extension, after) = sized::<2>(after)?;
        if (*high, *low) == (0, 0) && found.replace(name_of(extension)?).is_some() {
            return None;
        }
        extensions = after;
    }
    extensions.is_empty().then_some(found)
}

/// The one name in the extension.
fn name_of(extension: &[u8]) -> Option<String> {
    let (list, rest) = sized::<2>(extension)?;
    let [0, entry @ ..] = list else { return None };
    let (name, others) = sized::<2>(entry)?;
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let is_good = rest.is_empty() && others.is_empty() && !name.is_empty() && name.iter().all(is_name);
    is_good.then(|| String::from_utf8_lossy(name).to_ascii_lowercase())
}

/// What follows its length, which has so many bytes, and the rest.
fn sized<const N: usize>(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<N>()?;
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized_by<const N: usize>(bytes: &[u8]) -> Vec<u8> {
        let length = bytes.len().to_be_bytes();
        [&length[length.len() - N..], bytes].concat()
    }

    fn names(all: &[&str]) -> Vec<u8> {
        let entries: Vec<u8> =
            all.iter().flat_map(|name| [vec![0], sized_by::<2>(name.as_bytes())].concat()).collect();
        [vec![0, 0], sized_by::<2>(&sized_by::<2>(&entries))].concat()
    }

    /// A hello with these extensions, in records of so many bytes.
    fn hello(extensions: &[Vec<u8>], piece: usize) -> Vec<u8> {
        let other = vec![0, 43, 0, 3, 2, 3, 4];
        let all = [other, extensions.concat()].concat();
        let parts = [
            vec![3, 3],
            vec![7; 32],
            sized_by::<1>(&[9; 32]),
            sized_by::<2>(&[19, 1]),
            vec![1, 0],
            sized_by::<2>(&all),
        ];
        let message = [vec![1], sized_by::<3>(&parts.concat())].concat();
        message.chunks(piece).flat_map(|part| [vec![22, 3, 1], sized_by::<2>(part)].concat()).collect()
    }

    #[test]
    fn the_name_is_found_however_the_hello_is_cut() {
        for piece in [1, 7, 100, 10_000] {
            let bytes = hello(&[names(&["Shop.example"])], piece);
            for cut in 0..bytes.len() {
                assert_eq!(read(&bytes[..cut]), Hello::Open, "{piece} {cut}");
            }
            assert_eq!(read(&bytes), Hello::Tls(Some("shop.example".into())), "{piece}");
            assert_eq!(read(&[bytes, vec![20, 3, 3]].concat()), Hello::Tls(Some("shop.example".into())));
        }
        assert_eq!(read(&hello(&[], 10_000)), Hello::Tls(None));
    }

    #[test]
    fn what_is_doubtful_is_no_hello() {
        let good = hello(&[names(&["a"])], 10_000);
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            bytes
        };
        for (bytes, want) in [
            (b"GET / HTTP/1.1".to_vec(), Hello::Other),
            (vec![22, 4, 1], Hello::Other),
            (changed(5, 2), Hello::Bad),
            (hello(&[names(&["a"]), names(&["b"])], 10_000), Hello::Bad),
            (hello(&[names(&["a", "b"])], 10_000), Hello::Bad),
            (hello(&[names(&[""])], 10_000), Hello::Bad),
            (hello(&[names(&["a\0b"])], 10_000), Hello::Bad),
            (hello(&[vec![0, 0, 0, 0]], 10_000), Hello::Bad),
            (hello(&[vec![0, 9, 0, 9]], 10_000), Hello::Bad),
            ([&good[..20], &[22, 3, 1, 0, 0]].concat(), Hello::Open),
            (vec![22, 3, 1, 0, 0], Hello::Bad),
            (vec![22, 3, 1, 0xff, 0xff], Hello::Bad),
            (vec![22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff], Hello::Bad),
            ([vec![22, 3, 1, 0, 1, 1], vec![23, 3, 1, 0, 1, 1]].concat(), Hello::Bad),
        ] {
            assert_eq!(read(&bytes), want, "{bytes:?}");
        }
    }
}
