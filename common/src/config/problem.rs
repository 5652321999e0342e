//! One thing that is wrong with, or doubtful in, a configuration file.

use std::fmt;

/// What is wrong, and where. Its text is one line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// File, as it was named to the reader.
    pub file: String,
    /// Line, from 1; 0 if unknown.
    pub line: usize,
    /// Kind and name of the object, for example `AuthorizationPolicy shop/only-web`; empty if unknown.
    pub object: String,
    /// Path of the field, for example `spec.rules[0].from[0].source.principals[1]`; empty if it is the whole object.
    pub field: String,
    /// What was seen.
    pub seen: String,
    /// What is allowed, or what follows if it is only a warning.
    pub allowed: String,
}

/// Longest part of a problem's text that is shown, in characters.
const SHOWN: usize = 200;

/// A part of the text, without anything that breaks the line and without kilobytes.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        let mut rest = self.0.chars();
        for c in rest.by_ref().take(SHOWN) {
            match c {
                '\n' | '\r' | '\t' => f.write_char(' ')?,
                c if c.is_control() => write!(f, "{}", c.escape_default())?,
                c => f.write_char(c)?,
            }
        }
        if rest.next().is_some() { f.write_char('…') } else { Ok(()) }
    }
}

impl fmt::Display for Problem {
    /// `<file>:<line>: <object>: <field>: <seen>; <allowed>`, without the parts that are empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Shown(&self.file))?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, ": {}", Shown(part))?;
            }
        }
        write!(f, ": {}", Shown(&self.seen))?;
        if !self.allowed.is_empty() {
            // The allowed values are ours, not a stranger's: shown in full.
            write!(f, "; {}", self.allowed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_that_names_everything() {
        let problem = Problem {
            file: "shop.yaml".into(),
            line: 7,
            object: "Pod shop/cart-0".into(),
            field: "status.podIPs[0].ip".into(),
            seen: "\"10.0.0\nx\"".into(),
            allowed: "allowed: an IP address".into(),
        };
        assert_eq!(
            problem.to_string(),
            "shop.yaml:7: Pod shop/cart-0: status.podIPs[0].ip: \"10.0.0 x\"; allowed: an IP address"
        );
        let long = Problem { seen: "x".repeat(5000) + "\u{7}", ..problem };
        assert!(long.to_string().len() < 400);
    }
}
