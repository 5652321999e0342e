//! One log line, plain or JSON. Text from outside is quoted and escaped, so that it can neither end a line nor forge a field.

use std::cell::RefCell;
use std::fmt::{self, Display, Write};
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::{push_addr, push_hex, push_number, push_padded};

/// Longest text of one value; what is longer is cut and marked.
const MAX_VALUE: usize = 2048;

/// How lines look (`LOG_FORMAT`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Columns separated by tabs, then `key=value` pairs.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

/// What stands before the fields of a line.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) time: SystemTime,
    pub(super) level: &'static str,
    pub(super) scope: &'a str,
    pub(super) message: &'a str,
}

/// A line that is being written to the end of `out`.
pub(super) struct Line<'a> {
    out: &'a mut String,
    format: LogFormat,
    fields: bool,
}

impl<'a> Line<'a> {
    /// Writes the head. [`Line::end`] must follow.
    pub(super) fn start(out: &'a mut String, format: LogFormat, head: Head<'_>) -> Self {
        match format {
            LogFormat::Plain => {
                push_time(out, head.time);
                push_all(out, &["\t", head.level, "\t"]);
                push_escaped(out, head.scope, format, false);
                out.push('\t');
                push_escaped(out, head.message, format, false);
            }
            LogFormat::Json => {
                push_all(out, &["{\"level\":\"", head.level, "\",\"time\":\""]);
                push_time(out, head.time);
                out.push_str("\",\"scope\":\"");
                push_escaped(out, head.scope, format, true);
                out.push_str("\",\"message\":\"");
                push_escaped(out, head.message, format, true);
                out.push('"');
            }
        }
        Self { out, format, fields: false }
    }

    /// A field whose value is text: quoted and escaped.
    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        self.out.push('"');
        push_escaped(self.out, value, self.format, true);
        self.out.push('"');
    }

    /// The fields behind others: what it writes is for [`Line::fields`] of lines of this format.
    pub(super) fn part(out: &'a mut String, format: LogFormat) -> Self {
        Self { out, format, fields: true }
    }

    /// Fields that were written before, as a part of a line.
    pub(super) fn fields(&mut self, written: &str) {
        self.out.push_str(written);
    }

    /// How it looks.
    pub(super) fn format(&self) -> LogFormat {
        self.format
    }

    /// A field whose value is our own rendering of an address: not quoted in plain lines.
    pub(super) fn address(&mut self, key: &str, value: SocketAddr) {
        self.unless_plain(key, |out| push_addr(out, value));
    }

    /// The same of an address that is text.
    pub(super) fn address_text(&mut self, key: &str, value: &str) {
        self.unless_plain(key, |out| out.push_str(value));
    }

    /// A field whose value is so many digits in hex.
    pub(super) fn hex(&mut self, key: &str, value: u128, digits: usize) {
        self.key(key);
        self.out.push('"');
        push_hex(self.out, value, digits);
        self.out.push('"');
    }

    /// A field whose value is a time span.
    pub(super) fn milliseconds(&mut self, key: &str, value: u64) {
        self.key(key);
        self.out.push('"');
        push_number(self.out, value);
        self.out.push_str("ms\"");
    }

    /// A field whose value `push` adds, of which nothing has to be escaped: quoted but in plain lines.
    fn unless_plain(&mut self, key: &str, push: impl FnOnce(&mut String)) {
        self.key(key);
        match self.format {
            LogFormat::Plain => push(self.out),
            LogFormat::Json => {
                self.out.push('"');
                push(self.out);
                self.out.push('"');
            }
        }
    }

    /// A field that is an address only if it looks like one; other text is quoted.
    pub(super) fn address_or_text(&mut self, key: &str, value: &str) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b".:-_[]".contains(&b);
        if !value.is_empty() && value.len() <= MAX_VALUE && value.bytes().all(plain) {
            self.address_text(key, value);
        } else {
            self.text(key, value);
        }
    }

    /// A field whose value is a number or a truth value: never quoted.
    pub(super) fn number(&mut self, key: &str, value: impl Display) {
        self.key(key);
        push_display(self.out, value);
    }

    /// Ends the line.
    pub(super) fn end(self) {
        self.out.push_str(if self.format == LogFormat::Json { "}\n" } else { "\n" });
    }

    /// Keys are names that this program chose.
    fn key(&mut self, key: &str) {
        match self.format {
            LogFormat::Plain => push_all(self.out, &[if self.fields { " " } else { "\t" }, key, "="]),
            LogFormat::Json => push_all(self.out, &[",\"", key, "\":"]),
        }
        self.fields = true;
    }
}

fn push_all(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
}

fn push_display(out: &mut String, value: impl Display) {
    let _infallible: fmt::Result = write!(out, "{value}");
}

/// Appends `text` without anything that ends a line, moves the cursor or reorders what a person reads.
fn push_escaped(out: &mut String, text: &str, format: LogFormat, quoted: bool) {
    let harmless = |b: u8| (b' '..0x7f).contains(&b) && b != b'\\' && (b != b'"' || !quoted);
    if text.len() <= MAX_VALUE && text.bytes().all(harmless) {
        return out.push_str(text);
    }
    let mut left = MAX_VALUE;
    for c in text.chars() {
        let Some(rest) = left.checked_sub(c.len_utf8()) else { return out.push('…') };
        left = rest;
        match c {
            '\\' => out.push_str("\\\\"),
            '"' if quoted => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_hidden(c) => {
                // All of these are in the basic plane, so that four digits do in JSON too.
                let digits = u32::from(c);
                match format {
                    LogFormat::Plain => push_display(out, format_args!("\\u{{{digits:x}}}")),
                    LogFormat::Json => push_display(out, format_args!("\\u{digits:04x}")),
                }
            }
            c => out.push(c),
        }
    }
}

/// Control characters, line and paragraph separators, and those that change the direction of text.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// RFC 3339 in UTC with microseconds.
pub(super) fn push_time(out: &mut String, time: SystemTime) {
    thread_local! {
        /// The last second that was rendered: most lines of a busy worker share it.
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            *second = since.as_secs();
            text.clear();
            push_second(text, since.as_secs());
        }
        out.push_str(text);
    });
    out.push('.');
    push_padded(out, since.subsec_micros().into(), 6);
    out.push('Z');
}

fn push_second(out: &mut String, unix: u64) {
    let unix = i64::try_from(unix).unwrap_or(i64::MAX);
    let t = time::OffsetDateTime::from_unix_timestamp(unix).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = (t.year(), u8::from(t.month()), t.day());
    let (hour, minute, second) = t.to_hms();
    push_display(out, format_args!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn line(format: LogFormat, message: &str, value: &str) -> String {
        let time = UNIX_EPOCH + Duration::new(1_700_000_000, 42_000);
        let mut out = String::new();
        let mut line = Line::start(&mut out, format, Head { time, level: "info", scope: "access", message });
        line.text("a.b", value);
        line.address("addr", "10.0.0.1:80".parse().unwrap());
        line.number("n", 7);
        line.end();
        out
    }

    #[test]
    fn both_formats_look_as_documented() {
        assert_eq!(
            line(LogFormat::Plain, "hello", "x y"),
            "2023-11-14T22:13:20.000042Z\tinfo\taccess\thello\ta.b=\"x y\" addr=10.0.0.1:80 n=7\n"
        );
        assert_eq!(
            line(LogFormat::Json, "hello", "x y"),
            "{\"level\":\"info\",\"time\":\"2023-11-14T22:13:20.000042Z\",\"scope\":\"access\",\
             \"message\":\"hello\",\"a.b\":\"x y\",\"addr\":\"10.0.0.1:80\",\"n\":7}\n"
        );
    }

    #[test]
    fn hostile_text_stays_inside_its_quotes() {
        let hostile = "a\"\n2023\tinfo\r\\ \u{1b}[2J\u{0}\u{2028}\u{202e}\u{85}é";
        assert_eq!(
            line(LogFormat::Plain, "m", hostile).split('\t').nth(4).unwrap(),
            "a.b=\"a\\\"\\n2023\\tinfo\\r\\\\ \\u{1b}[2J\\u{0}\\u{2028}\\u{202e}\\u{85}é\" addr=10.0.0.1:80 n=7\n"
        );
        assert!(line(LogFormat::Json, "m", hostile).contains(
            "\"a.b\":\"a\\\"\\n2023\\tinfo\\r\\\\ \\u001b[2J\\u0000\\u2028\\u202e\\u0085é\",\"addr\""
        ));
    }

    #[test]
    fn what_is_no_address_is_quoted() {
        for (value, expected) in [
            ("10.0.0.1:80", "\tk=10.0.0.1:80\n"),
            ("[fd00::1]:80", "\tk=[fd00::1]:80\n"),
            ("cart.shop:80", "\tk=cart.shop:80\n"),
            ("", "\tk=\"\"\n"),
            ("x y=1", "\tk=\"x y=1\"\n"),
            ("x\n", "\tk=\"x\\n\"\n"),
        ] {
            let mut out = String::new();
            let head = Head { time: UNIX_EPOCH, level: "info", scope: "s", message: "m" };
            let mut line = Line::start(&mut out, LogFormat::Plain, head);
            line.address_or_text("k", value);
            line.end();
            assert!(out.ends_with(expected), "{out:?}");
        }
    }

    #[test]
    fn long_values_are_cut() {
        let out = line(LogFormat::Plain, "m", &"é".repeat(100_000));
        assert!(out.len() < MAX_VALUE + 200, "{}", out.len());
        assert!(out.contains('…'));
    }

    #[test]
    fn every_second_has_its_own_date() {
        for (unix, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
        ] {
            let mut out = String::new();
            push_time(&mut out, UNIX_EPOCH + Duration::from_secs(unix));
            assert_eq!(out, expected);
        }
    }

    /// What a parser makes of a field of a plain line: the text between quotes, with its escapes undone.
    fn unescape(quoted: &str) -> String {
        let mut out = String::new();
        let mut chars = quoted.chars();
        while let Some(c) = chars.next() {
            match (c, if c == '\\' { chars.next() } else { None }) {
                (_, Some('n')) => out.push('\n'),
                (_, Some('r')) => out.push('\r'),
                (_, Some('t')) => out.push('\t'),
                (_, Some('u')) => {
                    let digits: String = chars.by_ref().skip(1).take_while(|c| *c != '}').collect();
                    out.push(u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).unwrap());
                }
                (_, Some(other)) => out.push(other),
                (c, None) => out.push(c),
            }
        }
        out
    }

    proptest! {
        /// Nothing is lost or invented: a parser gets back what was logged.
        #[test]
        fn any_text_is_read_back(message in any::<String>(), value in "(?s).{0,300}") {
            let json: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, &message, &value)).unwrap();
            prop_assert_eq!(&json["a.b"], &value);
            prop_assert_eq!(&json["message"], &message);
            prop_assert_eq!(&json["n"], 7);
            let plain = line(LogFormat::Plain, &message, &value);
            let fields = plain.split('\t').nth(4).unwrap();
            let quoted = fields.strip_prefix("a.b=\"").unwrap().strip_suffix("\" addr=10.0.0.1:80 n=7\n").unwrap();
            prop_assert_eq!(unescape(quoted), value);
        }

        /// Whatever a peer sends, a line stays one line with the same columns, and quotes stay balanced.
        #[test]
        fn any_text_keeps_the_line_whole(message in any::<String>(), value in any::<String>()) {
            for format in [LogFormat::Plain, LogFormat::Json] {
                let out = line(format, &message, &value);
                let body = out.strip_suffix('\n').unwrap();
                prop_assert!(!body.chars().any(|c| is_hidden(c) && c != '\t'));
                let tabs = body.matches('\t').count();
                prop_assert_eq!(tabs, if format == LogFormat::Plain { 4 } else { 0 });
                let end = if format == LogFormat::Plain { " n=7" } else { ",\"n\":7}" };
                prop_assert!(body.ends_with(end), "{}", body);
            }
        }
    }
}
