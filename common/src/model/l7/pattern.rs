//! How texts of a request are compared.

use std::fmt;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

/// Largest program that a regular expression may become, in bytes.
const PROGRAM: usize = 1 << 20;

/// A regular expression that must match a whole text.
#[derive(Clone)]
pub struct Pattern {
    text: Arc<str>,
    whole: Regex,
    part: Regex,
}

impl Pattern {
    /// Compiles `text`, in RE2's syntax.
    ///
    /// **Errors**: the syntax, or a program that would grow too large; in words for people.
    pub fn new(text: &str) -> Result<Self, String> {
        let build =
            |text: &str| RegexBuilder::new(text).size_limit(PROGRAM).build().map_err(|e| in_a_line(&e));
        // Alone first: "a)(b" must not become right by what stands around it.
        let part = build(text)?;
        Ok(Self { text: text.into(), whole: build(&format!("^(?:{text})$"))?, part })
    }

    /// Whether it matches all of `text`.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.whole.is_match(text)
    }

    /// `text` with all matches replaced, as RE2's substitution has it: `\0` to `\9` are groups.
    pub fn replace(&self, text: &[u8], substitution: &str) -> Vec<u8> {
        let expand = |found: &regex::bytes::Captures<'_>| {
            let mut out = Vec::new();
            let mut rest = substitution.as_bytes();
            loop {
                rest = match rest {
                    [] => break,
                    [b'\\', digit @ b'0'..=b'9', rest @ ..] => {
                        let group = found.get(usize::from(digit - b'0'));
                        out.extend_from_slice(group.map(|group| group.as_bytes()).unwrap_or_default());
                        rest
                    }
                    [b'\\', b'\\', rest @ ..] => {
                        out.push(b'\\');
                        rest
                    }
                    [byte, rest @ ..] => {
                        out.push(*byte);
                        rest
                    }
                };
            }
            out
        };
        self.part.replace_all(text, expand).into_owned()
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// What is wrong, without the drawing that points at it.
fn in_a_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim();
    last.strip_prefix("error: ").unwrap_or(last).trim_end_matches('.').to_ascii_lowercase()
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

/// A `StringMatch` of Istio, or a match value of Gateway API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextMatch {
    /// The whole text.
    Exact(Arc<str>),
    /// Its beginning.
    Prefix(Arc<str>),
    /// A regular expression over the whole text.
    Regex(Pattern),
    /// Any text; it must be there.
    Present,
}

impl TextMatch {
    /// Whether `text` is meant.
    pub fn is_match(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == text,
            Self::Prefix(prefix) => text.starts_with(prefix.as_bytes()),
            Self::Regex(pattern) => pattern.is_match(text),
            Self::Present => true,
        }
    }

    /// The same without regard to the case of ASCII letters; a regular expression says itself what it wants.
    pub fn is_match_ignoring_case(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes().eq_ignore_ascii_case(text),
            Self::Prefix(prefix) => {
                text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
            }
            Self::Regex(_) | Self::Present => self.is_match(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_texts_and_replaces_parts() {
        let pattern = Pattern::new("/(a|b)[0-9]+").unwrap();
        for (text, is_match) in
            [("/a1", true), ("/b22", true), ("/a", false), ("x/a1", false), ("/a1x", false)]
        {
            assert_eq!(pattern.is_match(text.as_bytes()), is_match, "{text}");
        }
        assert_eq!(pattern.replace(b"/a1/b2", r"/\1-\\"), br"/a-\/b-\");
        assert_eq!(Pattern::new("a)(b").unwrap_err(), "unopened group");
        assert!(Pattern::new("(a{500}){500}").is_err(), "a program of megabytes");
    }

    #[test]
    fn case_matters_unless_it_does_not() {
        let exact = TextMatch::Exact("/Foo".into());
        let prefix = TextMatch::Prefix("/Foo".into());
        for (text, e, p) in [("/Foo", (true, true), (true, true)), ("/foobar", (false, false), (false, true))]
        {
            let text = text.as_bytes();
            assert_eq!((exact.is_match(text), exact.is_match_ignoring_case(text)), e);
            assert_eq!((prefix.is_match(text), prefix.is_match_ignoring_case(text)), p);
        }
    }
}
