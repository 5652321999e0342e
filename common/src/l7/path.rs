//! How the path of a request is made plain, once, before anything looks at it.
//!
//! **Source**: RFC 3986 §6.2.2; MeshConfig.pathNormalization; the WHATWG URL path rules that Envoy's library follows.

use std::borrow::Cow;

use crate::model::l7::{AboveRoot, Normalization};

/// Why a request target is refused with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It does not begin with `/`.
    #[error("the request target is no path; only those that begin with / are routed")]
    NotAbsolute,
    /// It has an encoded NUL.
    #[error("the path has %00 in it")]
    Nul,
    /// It has a character that no target may have.
    #[error("the path has a control character or a space in it")]
    Control,
    /// It climbs above the root, and that is not let pass.
    #[error("the path climbs above its root")]
    AboveRoot,
}

/// Path and query of a request target, the path made plain.
///
/// What follows a `#` is dropped. The query stays as it is, but for bytes that are no ASCII: these are encoded. Nothing is
/// decoded twice. With [`Normalization::None`] only what no path may have is refused or encoded.
///
/// **Shape**: borrowed when nothing changes, which is nearly always.
///
/// **Errors**: what cannot be made plain; the request is answered with 400.
pub fn normalize(target: &[u8], how: Normalization, above_root: AboveRoot) -> Result<Cow<'_, str>, BadPath> {
    let target = target.split(|byte| *byte == b'#').next().unwrap_or_default();
    if target.first() != Some(&b'/') {
        return Err(BadPath::NotAbsolute);
    }
    let path = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(path);
    if query.iter().any(|byte| is_control(*byte)) || path.iter().any(|byte| is_control(*byte)) {
        return Err(BadPath::Control);
    }
    if path.windows(3).any(|three| three == b"%00") {
        return Err(BadPath::Nul);
    }
    if is_plain(path, how)
        && query.is_ascii()
        && let Ok(target) = std::str::from_utf8(target)
    {
        return Ok(Cow::Borrowed(target));
    }
    let mut out = String::with_capacity(target.len() + 8);
    let path = match how {
        Normalization::None => path.to_vec(),
        how => plain(path, how, above_root)?,
    };
    path.iter().for_each(|byte| push(&mut out, *byte, how != Normalization::None && is_encoded(*byte)));
    query.iter().for_each(|byte| push(&mut out, *byte, false));
    Ok(Cow::Owned(out))
}

fn plain(path: &[u8], how: Normalization, above_root: AboveRoot) -> Result<Vec<u8>, BadPath> {
    Ok(match how {
        Normalization::None | Normalization::Base => canonical(path, above_root)?,
        Normalization::MergeSlashes => merged(canonical(path, above_root)?),
        Normalization::DecodeAndMergeSlashes => merged(canonical(&slashes_decoded(path), above_root)?),
    })
}

fn is_control(byte: u8) -> bool {
    byte <= b' ' || byte == 0x7f
}

/// Whether nothing in `path` could change; some paths that would stay are looked at nevertheless.
fn is_plain(path: &[u8], how: Normalization) -> bool {
    if how == Normalization::None {
        return path.is_ascii();
    }
    let mut before = 0;
    path.iter().all(|byte| {
        let pair = (std::mem::replace(&mut before, *byte), *byte);
        match pair {
            (b'/', b'.') => false,
            (b'/', b'/') => how == Normalization::Base,
            (_, byte) => !matches!(byte, b'%' | b'\\') && !is_encoded(byte),
        }
    })
}

/// Whether a byte of a path is written with `%`.
fn is_encoded(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}') || !byte.is_ascii()
}

/// Whether `%` and two digits for it mean the same as the byte.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The byte that `%` and two digits at the beginning mean.
fn escaped(text: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match text {
        [b'%', high, low, ..] => Some(digit(*high)? * 16 + digit(*low)?),
        _ => None,
    }
}

/// What stands at the beginning of the rest of a path: a byte, and how many bytes say so.
fn next(rest: &[u8]) -> Option<(Unit, usize)> {
    let first = *rest.first()?;
    Some(match (first, escaped(rest)) {
        (b'%', Some(byte)) if is_unreserved(byte) => (Unit::Byte(byte), 3),
        (b'%', Some(_)) => (Unit::Escape, 3),
        (b'\\', _) => (Unit::Byte(b'/'), 1),
        (byte, _) => (Unit::Byte(byte), 1),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Byte(u8),
    /// `%` and two digits that stay.
    Escape,
}

/// Dot segments resolved, `\` as `/`, what is unreserved decoded, what is no path character encoded later.
fn canonical(path: &[u8], above_root: AboveRoot) -> Result<Vec<u8>, BadPath> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    // Where the last `%` stands that encodes nothing.
    let mut percent = None;
    while let Some((unit, len)) = next(rest) {
        let (here, after) = rest.split_at(len);
        rest = after;
        if unit == Unit::Byte(b'.') && out.last() == Some(&b'/') {
            rest = match dots(after) {
                Dots::Name => {
                    out.push(b'.');
                    after
                }
                Dots::Here(after) => after,
                Dots::Up(after) => {
                    if out.len() == 1 && above_root == AboveRoot::Refused {
                        return Err(BadPath::AboveRoot);
                    }
                    // Its own slash goes first; that of the root stays.
                    let cut = out.iter().rev().skip(1).position(|byte| *byte == b'/');
                    out.truncate(cut.map_or(1, |back| out.len() - 1 - back));
                    after
                }
            };
            continue;
        }
        match unit {
            Unit::Byte(byte) => {
                out.push(byte);
                // What was decoded must not stand behind a `%` of its own as if it had been encoded twice.
                if let [.., b'%', high, low] = out[..]
                    && percent == Some(out.len() - 3)
                    && escaped(&[b'%', high, low]).is_some()
                {
                    out.splice(out.len() - 2.., [b'2', b'5', high, low]);
                }
                if byte == b'%' {
                    percent = Some(out.len() - 1);
                }
            }
            Unit::Escape => out.extend_from_slice(here),
        }
    }
    Ok(out)
}

/// What a dot after a slash is the beginning of, and what comes after it.
enum Dots<'a> {
    /// A name.
    Name,
    /// This segment.
    Here(&'a [u8]),
    /// The segment before.
    Up(&'a [u8]),
}

fn dots(after: &[u8]) -> Dots<'_> {
    let end = |rest: &[u8]| match next(rest) {
        None => Some(0),
        Some((Unit::Byte(b'/'), len)) => Some(len),
        Some(_) => None,
    };
    if let Some(rest) = end(after).and_then(|slash| after.get(slash..)) {
        return Dots::Here(rest);
    }
    if let Some((Unit::Byte(b'.'), len)) = next(after)
        && let Some(rest) = after.get(len..)
        && let Some(rest) = end(rest).and_then(|slash| rest.get(slash..))
    {
        return Dots::Up(rest);
    }
    Dots::Name
}

/// `%2f` and `%5c` as slashes.
fn slashes_decoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(first) = rest.first() {
        let (byte, len) = match escaped(rest) {
            Some(byte @ (b'/' | b'\\')) => (byte, 3),
            _ => (*first, 1),
        };
        out.push(byte);
        rest = rest.get(len..).unwrap_or_default();
    }
    out
}

/// Slashes that follow each other as one.
pub(super) fn merged(mut path: Vec<u8>) -> Vec<u8> {
    path.dedup_by(|byte, before| *byte == b'/' && *before == b'/');
    path
}

/// A byte, with `%` if it must be; what is no ASCII must always be.
fn push(out: &mut String, byte: u8, is_encoded: bool) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if byte.is_ascii() && !is_encoded {
        out.push(char::from(byte));
        return;
    }
    out.push('%');
    for nibble in [byte >> 4, byte & 0xf] {
        out.push(DIGITS.get(usize::from(nibble)).copied().map_or('0', char::from));
    }
}

#[cfg(test)]
mod tests;
