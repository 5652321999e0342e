//! The forms in which a part of a request may be read by who gets it, beside the one in which it came.
//!
//! DENY's values are compared with each form and so are the values that ALLOW forbids; everything else is compared with the
//! request as it is. So no form ever makes an ALLOW wider, and none makes a DENY narrower.

use std::borrow::Cow;

use super::facts::host_and_port;
use crate::model::l7::{Access, Effect};

/// A text as it came, and as others may read it.
pub(super) struct Forms<'a> {
    pub(super) plain: &'a [u8],
    /// Empty for nearly all requests.
    pub(super) others: Vec<Cow<'a, [u8]>>,
}

impl<'a> Forms<'a> {
    pub(super) fn only(plain: &'a [u8]) -> Self {
        Self { plain, others: Vec::new() }
    }

    /// A host: its port and the dot of a full name do not make it another one.
    pub(super) fn host(authority: &'a str) -> Self {
        let (host, _) = host_and_port(authority);
        let mut forms = Self::only(authority.as_bytes());
        for host in [host, host.trim_end_matches('.')] {
            forms.add(Cow::Borrowed(host.as_bytes()));
        }
        forms
    }

    /// A method: some servers do not look at the case of its letters.
    pub(super) fn method(method: &'a str) -> Self {
        let mut forms = Self::only(method.as_bytes());
        if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
            forms.add(Cow::Owned(method.to_ascii_uppercase().into_bytes()));
        }
        forms
    }

    /// A path: servers join slashes, drop the parameters of segments, and decode once more.
    pub(super) fn path(path: &'a str) -> Self {
        let mut forms = Self::only(path.as_bytes());
        let is_plain =
            |pair: &[u8]| !matches!(pair, b"//" | b"/.") && !pair.iter().any(|byte| b"%;\\".contains(byte));
        if path.as_bytes().windows(2).all(is_plain) {
            return forms;
        }
        let joined = resolved(path.as_bytes());
        let mut decoded = path.as_bytes().to_vec();
        // What was encoded more often is still encoded; nobody decodes without end.
        for _ in 0..3 {
            let next = decode(&decoded);
            if next == decoded {
                break;
            }
            forms.add(Cow::Owned(resolved(&next)));
            forms.add(Cow::Owned(resolved(&without_parameters(&next))));
            decoded = next;
        }
        forms.add(Cow::Owned(joined));
        forms.add(Cow::Owned(resolved(&without_parameters(path.as_bytes()))));
        forms
    }

    fn add(&mut self, form: Cow<'a, [u8]>) {
        if form != self.plain && !self.others.contains(&form) {
            self.others.push(form);
        }
    }

    /// Whether a policy's values are met, in the reading that lets less through.
    pub(super) fn are<T>(&self, access: &Access<T>, effect: Effect, is: impl Fn(&T, &[u8]) -> bool) -> bool {
        let Access { values, not_values } = access;
        let any = |list: &[T], form: &[u8]| list.iter().any(|one| is(one, form));
        let mut others = self.others.iter().map(|form| &**form);
        let wanted = values.is_empty()
            || any(values, self.plain)
            || (effect == Effect::Deny && others.clone().any(|form| any(values, form)));
        wanted
            && (not_values.is_empty()
                || match effect {
                    Effect::Allow => {
                        !any(not_values, self.plain) && !others.any(|form| any(not_values, form))
                    }
                    Effect::Deny => !any(not_values, self.plain) || others.any(|form| !any(not_values, form)),
                    Effect::Audit => !any(not_values, self.plain),
                })
    }
}

/// `%` and two digits as the byte that they mean.
fn decode(path: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, after @ ..] = rest {
        let byte = match after {
            [high, low, ..] if *first == b'%' => {
                digit(*high).zip(digit(*low)).map(|(high, low)| high * 16 + low)
            }
            _ => None,
        };
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { rest.get(3..).unwrap_or_default() } else { after };
    }
    out
}

/// Without what follows a `;` in a segment.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let mut in_parameters = false;
    let is_path = |byte: &u8| {
        in_parameters = *byte == b';' || (in_parameters && !matches!(byte, b'/' | b'\\'));
        !in_parameters
    };
    path.iter().copied().filter(is_path).collect()
}

/// With `\` as `/`, slashes joined and dot segments resolved.
fn resolved(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<&[u8]> = Vec::new();
    let segments: Vec<&[u8]> = path.split(|byte| matches!(byte, b'/' | b'\\')).collect();
    for segment in &segments {
        match *segment {
            b"" | b"." => {}
            b".." => drop(out.pop()),
            name => out.push(name),
        }
    }
    let ends_open = segments.last().is_some_and(|last| matches!(*last, b"" | b"." | b".."));
    let mut text = Vec::with_capacity(path.len());
    for segment in &out {
        text.push(b'/');
        text.extend_from_slice(segment);
    }
    if ends_open || out.is_empty() {
        text.push(b'/');
    }
    text
}
