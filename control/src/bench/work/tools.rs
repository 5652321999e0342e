//! Versions of the programs that do the work, for the record.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use crate::lab::{find_program, package_of};

/// Programs, and what makes them tell their version.
const TOOLS: [(&str, &str); 3] = [("wrk", "-v"), ("iperf3", "--version"), ("nginx", "-v")];

/// Programs that are missing, each with the Debian package that has it.
pub fn missing() -> Vec<(&'static str, &'static str)> {
    let absent = TOOLS.iter().filter(|(tool, _)| find_program(tool).is_none());
    absent.map(|(tool, _)| (*tool, package_of(tool))).collect()
}

/// Versions of the programs that there are, by name.
pub fn versions() -> BTreeMap<String, String> {
    TOOLS.iter().filter_map(|(tool, flag)| Some(((*tool).to_owned(), version(tool, flag)?))).collect()
}

fn version(tool: &str, flag: &str) -> Option<String> {
    let done = Command::new(find_program(tool)?).arg(flag).stdin(Stdio::null()).output().ok()?;
    // Each prints it on the output it likes, and wrk and nginx do not call that a success.
    let text = [done.stdout, done.stderr].concat();
    first_version(&String::from_utf8_lossy(&text))
}

/// The first word with a digit and a dot in it, without the program's name before a slash.
fn first_version(text: &str) -> Option<String> {
    let words = text.lines().next()?.split_whitespace();
    let versions = words.map(|word| word.rsplit('/').next().unwrap_or(word));
    let mut versions = versions
        .filter(|word| word.contains('.') && word.bytes().next().is_some_and(|byte| byte.is_ascii_digit()));
    versions.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_each_prints() {
        for (text, version) in [
            ("wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012 Will Glozer\nUsage: wrk", Some("4.1.0-3+b2")),
            ("iperf 3.12 (cJSON 1.7.15)\nLinux", Some("3.12")),
            ("nginx version: nginx/1.22.1\n", Some("1.22.1")),
            ("no version here\n1.2\n", None),
            ("", None),
        ] {
            assert_eq!(first_version(text).as_deref(), version, "{text}");
        }
    }
}
