//! One line of an agent's log, plain or JSON.

/// A log line whose fields can be asked for by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine(String);

impl LogLine {
    /// Takes a line as it was written.
    pub fn new(line: &str) -> Self {
        Self(line.to_owned())
    }

    /// The line as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A field's value without quotes, such as `src.identity`.
    pub fn field(&self, key: &str) -> Option<String> {
        if self.0.starts_with('{') {
            let object: serde_json::Value = serde_json::from_str(&self.0).ok()?;
            return match object.get(key)? {
                serde_json::Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            };
        }
        let wanted = format!("{key}=");
        let starts = |at: &usize| self.0.get(..*at).is_some_and(|p| p.is_empty() || p.ends_with([' ', '\t']));
        let (at, _) = self.0.match_indices(&wanted).find(|(at, _)| starts(at))?;
        let value = self.0.get(at + wanted.len()..)?;
        match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => value.split([' ', '\t']).next().map(str::to_owned),
        }
    }

    /// Whether each of `(field, value)` is in the line.
    pub fn has(&self, wanted: &[(&str, &str)]) -> bool {
        wanted.iter().all(|(key, value)| self.field(key).as_deref() == Some(value))
    }
}

/// Text up to the closing quote, with backslash escapes taken away.
fn unquote(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some(value),
            '\\' => value.push(chars.next()?),
            other => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_plain_line() {
        let line = LogLine::new(
            "2026-01-01T00:00:00Z\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:5 src.identity=\"spiffe://a/ns/b/sa/c\" error=\"said \\\"no\\\"\"",
        );
        assert_eq!(line.field("src.addr").as_deref(), Some("10.0.0.1:5"));
        assert_eq!(line.field("src.identity").as_deref(), Some("spiffe://a/ns/b/sa/c"));
        assert_eq!(line.field("error").as_deref(), Some("said \"no\""));
        assert_eq!(line.field("addr"), None, "a part of a key is not the key");
        assert!(line.has(&[("src.addr", "10.0.0.1:5")]));
        assert!(!line.has(&[("src.addr", "10.0.0.1:6")]));
    }

    #[test]
    fn fields_of_a_json_line() {
        let line = LogLine::new(r#"{"level":"info","src.identity":"spiffe://a","bytes_sent":12}"#);
        assert_eq!(line.field("src.identity").as_deref(), Some("spiffe://a"));
        assert_eq!(line.field("bytes_sent").as_deref(), Some("12"));
        assert_eq!(line.field("dst.identity"), None);
    }

    #[test]
    fn a_value_that_never_ends_is_none() {
        assert_eq!(LogLine::new("error=\"open").field("error"), None);
        assert_eq!(LogLine::new("{broken").field("error"), None);
    }
}
