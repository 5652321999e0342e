//! Rules that no compiler checks: who may know whom, how long a file may be, where `unsafe` may stand.
//!
//! Each test lists everything that it finds.
#![expect(clippy::unwrap_used, reason = "a test that panics has found something")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of a file without its tests.
const LINES_MAX: usize = 600;
/// Packages that the workspace's programs are built from.
const PACKAGES_MAX: usize = 230;
/// The one file that may hold `unsafe`.
const UNSAFE: &str = "common/src/net/sys.rs";
/// Folders with code of programs and libraries.
const CODE: [&str; 5] = ["common/src", "ztunnel/src", "waypoint/src", "control/src", "tests/src"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_owned()
}

/// All files below `dir`, relative to the workspace and sorted; neither build output nor git's.
fn files(dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_symlink() || name == "target" || name == ".git" {
                continue;
            } else if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn text(file: &str) -> String {
    String::from_utf8_lossy(&fs::read(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}")))
        .into_owned()
}

/// Rust text with comments and literals replaced by blanks: lines and braces stay where they are.
fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    while i < bytes.len() {
        let end = match skipped(bytes, i) {
            Some(end) => end.min(bytes.len()),
            None => {
                // An identifier is passed whole, so that the `r` of `for"` starts no raw string.
                let word = bytes[i..].iter().take_while(|b| is_word(**b)).count();
                i += word.max(1);
                continue;
            }
        };
        for byte in &mut out[i..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        i = end;
    }
    String::from_utf8(out).expect("whole literals were blanked, the rest is unchanged")
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// End of the comment or literal that begins at `i`, if one does.
fn skipped(bytes: &[u8], i: usize) -> Option<usize> {
    let rest = &bytes[i..];
    if rest.starts_with(b"//") {
        return Some(i + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()));
    }
    if rest.starts_with(b"/*") {
        let mut depth = 0;
        for at in 0..rest.len() {
            match rest.get(at..at + 2) {
                Some(b"/*") => depth += 1,
                Some(b"*/") => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(i + at + 2);
                    }
                }
                _ => {}
            }
        }
        return Some(bytes.len());
    }
    let prefix = rest.iter().take_while(|b| matches!(b, b'b' | b'c' | b'r')).count();
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    let raw = rest[..prefix].contains(&b'r');
    match rest.get(prefix + hashes) {
        Some(b'"') if raw => {
            let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            let body = prefix + hashes + 1;
            let end = rest[body..].windows(close.len()).position(|w| w == close);
            Some(end.map_or(bytes.len(), |end| i + body + end + close.len()))
        }
        Some(b'"') if hashes == 0 => Some(quoted(bytes, i + prefix + 1, b'"')),
        // A lifetime has no closing quote two or three characters on.
        Some(b'\'') if hashes == 0 && prefix <= 1 => {
            let body = i + prefix + 1;
            let char_len = std::str::from_utf8(&bytes[body..]).ok()?.chars().next()?.len_utf8();
            let is_char = bytes.get(body) == Some(&b'\\') || bytes.get(body + char_len) == Some(&b'\'');
            is_char.then(|| quoted(bytes, body, b'\''))
        }
        _ => None,
    }
}

fn quoted(bytes: &[u8], mut i: usize, quote: u8) -> usize {
    while i < bytes.len() && bytes[i] != quote {
        i += if bytes[i] == b'\\' { 2 } else { 1 };
    }
    i + 1
}

/// Code without what is built for tests only; the names of test modules in files of their own go to `modules`.
fn without_tests(code: &str, modules: &mut Vec<String>) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let item = after.strip_prefix(MARK).unwrap();
        let end = item.find(['{', ';']).unwrap_or(item.len());
        let (head, body) = item.split_at(end);
        if let Some(name) = head.split_whitespace().skip_while(|word| *word != "mod").nth(1)
            && body.starts_with(';')
        {
            modules.push(name.to_owned());
        }
        rest = body.get(item_len(body)..).unwrap_or("");
    }
    out.push_str(rest);
    out
}

/// Length of an item's body: up to the `;`, or to the brace that closes the first one.
fn item_len(body: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in body.char_indices() {
        match c {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    body.len()
}

/// Each code file that is no test, with its code.
fn sources() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut tests = BTreeSet::new();
    for file in CODE.iter().flat_map(|dir| files(dir)).filter(|file| file.ends_with(".rs")) {
        let mut modules = Vec::new();
        let code = without_tests(&code_only(&text(&file)), &mut modules);
        let base = file.strip_suffix(".rs").unwrap();
        let dir = ["/mod", "/lib", "/main"].iter().find_map(|end| base.strip_suffix(end)).unwrap_or(base);
        tests.extend(modules.iter().map(|name| format!("{dir}/{name}")));
        all.insert(file, code);
    }
    all.retain(|file, _| {
        !tests.iter().any(|test| {
            file.strip_prefix(test.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
    });
    all
}

/// Rows of the modules of `common`, from the table in the head of its `lib.rs`.
fn rows() -> BTreeMap<String, u32> {
    let mut rows = BTreeMap::new();
    for line in text("common/src/lib.rs").lines() {
        let cells: Vec<&str> = line.trim_start_matches("//!").split('|').map(str::trim).collect();
        if let [_, row, modules, ..] = cells[..]
            && let Ok(row) = row.parse()
        {
            let names = modules.split(',').map(|name| name.trim().trim_matches('`').to_owned());
            rows.extend(names.map(|name| (name, row)));
        }
    }
    rows
}

/// Top-level modules that a piece of code of `common` names by `crate::…`.
fn named(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let (before, path) = (code.get(..at).unwrap_or(""), code.get(at + "crate::".len()..).unwrap_or(""));
        if before.ends_with('$') || before.bytes().last().is_some_and(is_word) {
            continue;
        }
        let Some(group) = path.trim_start().strip_prefix('{') else {
            names.push(first_word(path));
            continue;
        };
        let (mut depth, mut piece) = (0, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => names.push(first_word(&std::mem::take(&mut piece))),
                _ if depth == 0 => piece.push(c),
                _ => {}
            }
        }
        names.push(first_word(&piece));
    }
    names.retain(|name| !name.is_empty());
    names
}

fn first_word(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[track_caller]
fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn modules_of_common_name_lower_rows_only() {
    let rows = rows();
    let mut problems = Vec::new();
    let mut edges = 0;
    for (file, code) in sources() {
        let Some(path) = file.strip_prefix("common/src/").filter(|path| *path != "lib.rs") else { continue };
        let own = path.split(['/', '.']).next().unwrap().to_owned();
        let Some(row) = rows.get(&own) else {
            problems.push(format!("{file}: {own} has no row in the table of common/src/lib.rs"));
            continue;
        };
        for name in named(&code).into_iter().filter(|name| *name != own) {
            edges += 1;
            match rows.get(&name) {
                Some(other) if other < row => {}
                Some(other) => problems.push(format!("{file}: {own} (row {row}) names {name} (row {other})")),
                None => problems.push(format!("{file}: names crate::{name}, which has no row")),
            }
        }
        // From `x/mod.rs` one `super` is the crate, from `x/y.rs` two are: such paths would pass unseen.
        let depth = path.trim_end_matches("/mod.rs").trim_end_matches(".rs").split('/').count();
        if code.contains(&"super::".repeat(depth)) {
            problems.push(format!("{file}: reaches the crate's root by super::, write crate::"));
        }
    }
    none(problems);
    assert!(edges > 20 && rows.len() > 8, "nothing was looked at: {edges} edges, {} rows", rows.len());
}

#[test]
fn files_are_short_enough_to_be_read() {
    let long = |(file, code): (String, String)| {
        let lines = code.lines().count();
        (lines > LINES_MAX).then(|| format!("{file}: {lines} lines without tests, at most {LINES_MAX}"))
    };
    none(sources().into_iter().filter_map(long).collect());
}

#[test]
fn unsafe_stands_in_one_file() {
    let mut found = BTreeSet::new();
    for file in files("").into_iter().filter(|file| file.ends_with(".rs")) {
        let code = code_only(&text(&file));
        if code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
            found.insert(file);
        }
    }
    found.remove(UNSAFE);
    none(found.into_iter().map(|file| format!("{file}: unsafe belongs in {UNSAFE}")).collect());
}

/// Files that could name a manifest, without this one.
fn programs() -> Vec<String> {
    files("").into_iter().filter(|file| file.ends_with(".rs") && !file.ends_with("/tidy.rs")).collect()
}

#[test]
fn each_manifest_is_used_by_a_program_or_a_test() {
    let programs: Vec<String> = programs().iter().map(|file| text(file)).collect();
    let mut problems = Vec::new();
    let manifests = files("manifests");
    for file in manifests.iter().filter(|file| file.ends_with(".yaml") || file.ends_with(".yml")) {
        // By its path; by its folder's, where all of it is loaded; or by its name beside its folder's path.
        let (folder, name) = file.rsplit_once('/').unwrap();
        let whole = [format!("{file}\""), format!("{folder}\""), format!("{folder}/\"")];
        let parts = [format!("{folder}/{{"), format!("\"{name}\"")];
        let names_it = |program: &String| {
            whole.iter().any(|path| program.contains(path)) || parts.iter().all(|part| program.contains(part))
        };
        if !programs.iter().any(names_it) {
            problems.push(format!("{file}: no program and no test names it or its folder"));
        }
    }
    none(problems);
}

/// One package a line.
fn cargo_tree(more: &[&str]) -> String {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--prefix", "none", "--locked", "--offline"])
        .args(more)
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    String::from_utf8(tree.stdout).unwrap()
}

#[test]
fn the_programs_are_built_from_few_packages() {
    let tree = cargo_tree(&["-e", "normal"]);
    // Name and version; what follows are marks and paths.
    let packages: BTreeSet<Vec<&str>> = tree
        .lines()
        .map(|line| line.split(' ').take(2).collect())
        .filter(|p: &Vec<_>| p.len() == 2)
        .collect();
    let count = packages.len();
    assert!((20..=PACKAGES_MAX).contains(&count), "{count} packages, at most {PACKAGES_MAX}");
}

/// The quoted texts of `deny.toml` between two of its lines.
fn denied(from: &str, to: &str) -> Vec<String> {
    let file = text("deny.toml");
    let (_, rest) = file.split_once(from).expect("a list in deny.toml");
    let (list, _) = rest.split_once(to).expect("the list's end");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What cargo-deny checks of licences and bans, for where it is not installed.
#[test]
fn all_packages_have_a_licence_that_is_allowed_and_none_is_banned() {
    let allowed = denied("allow = [", "]");
    let banned = denied("deny = [", "]");
    let tree = cargo_tree(&["--format", "{p}|{l}"]);
    let problems = tree.lines().filter(|line| !line.is_empty()).filter_map(|line| {
        let (package, licence) = line.trim_end_matches(" (*)").split_once('|')?;
        let name = package.split(' ').next().unwrap_or(package);
        let plain = licence.replace(['(', ')'], "");
        let is_free = plain.split(" AND ").all(|part| {
            part.replace('/', " OR ").split(" OR ").any(|one| allowed.iter().any(|a| a == one.trim()))
        });
        let is_banned = banned.iter().any(|b| b == name);
        (is_banned || !is_free).then(|| format!("{package}: licence {licence:?}, banned: {is_banned}"))
    });
    none(problems.collect());
}

#[test]
fn no_file_names_somebodys_machine() {
    let homes = ["home", "root", "Users", "work"].map(|dir| format!("/{dir}/"));
    let mut problems = Vec::new();
    for file in files("").into_iter().filter(|file| !file.ends_with(".png") && !file.ends_with(".svg")) {
        for (number, line) in text(&file).lines().enumerate() {
            let starts_path = |at: usize| {
                !line.get(..at).unwrap_or("").ends_with(|c: char| c.is_alphanumeric() || "/.-_}*".contains(c))
            };
            if homes.iter().any(|home| line.match_indices(home).any(|(at, _)| starts_path(at))) {
                problems.push(format!("{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none(problems);
}

#[test]
fn the_reader_of_rust_text_sees_what_it_should() {
    let code = "a /* crate::x /* */ */ b // unsafe\nlet s = r#\"crate::y \" \"#; 'c'; '\\''; \"\\\" { \"; fn f<'a>() {}";
    let seen = code_only(code);
    assert_eq!(seen.len(), code.len());
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>().join(" "), "a b let s = ; ; ; ; fn f<'a>() {}");
    let mut modules = Vec::new();
    let kept = without_tests("x; #[cfg(test)] mod tests { { } } y; #[cfg(test)]\nmod far; z", &mut modules);
    assert_eq!((kept.as_str(), &modules[..]), ("x;  y;  z", &["far".to_owned()][..]));
    assert_eq!(named("use crate::{a::{b, c}, d}; crate::e::f(); $crate::g; pub(crate) h"), ["a", "d", "e"]);
}
