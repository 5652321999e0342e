//! What was noted comes back, and nothing else does.

use super::*;
use crate::xds::proto::discovery::Any;

/// A folder that does not exist yet; removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("culvert-journal-{:016x}", getrandom::u64().unwrap())))
    }

    fn journal(&self) -> Journal {
        Journal::new(self.0.clone(), "cluster=c node=n")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn resource(name: &str, version: &str, size: usize) -> Resource {
    let body = Any { type_url: Kind::Address.url().into(), value: vec![7; size].into() };
    Resource { name: name.into(), version: version.into(), resource: Some(body), aliases: Vec::new() }
}

fn told(journal: &Journal) -> Vec<Told> {
    let mut all = Vec::new();
    journal.load(|told| all.push(told)).unwrap();
    all
}

#[test]
fn what_was_noted_comes_back_in_order() {
    let folder = Folder::new();
    let mut journal = folder.journal();
    assert_eq!(journal.load(|_| panic!()).unwrap(), None, "nothing there yet");
    let (a, b) = (resource("a", "1", 3), resource("b", "2", 0));
    journal.there(Kind::Address, &a);
    journal.complete();
    journal.flush(0);
    journal.there(Kind::Authorization, &b);
    journal.gone(Kind::Address, "a");
    journal.flush(0);
    let wanted = [
        Told::There(Kind::Address, a),
        Told::Complete,
        Told::There(Kind::Authorization, b),
        Told::Gone(Kind::Address, "a".into()),
    ];
    assert_eq!(told(&folder.journal()), wanted);
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder.0), mode(&journal.path())), (0o700, 0o600));
}

#[test]
fn another_meshs_or_nodes_state_is_not_read_and_then_replaced() {
    let folder = Folder::new();
    let mut other = Journal::new(folder.0.clone(), "cluster=c node=other");
    other.there(Kind::Address, &resource("a", "1", 3));
    other.flush(0);
    drop(other);
    let mut journal = folder.journal();
    assert!(matches!(journal.load(|_| panic!()), Err(LoadError::Foreign { .. })));
    journal.there(Kind::Address, &resource("b", "1", 3));
    journal.flush(0);
    assert_eq!(told(&journal), [Told::There(Kind::Address, resource("b", "1", 3))]);
}

#[test]
fn a_damaged_end_is_left_out_and_written_over() {
    for cut in [1, 4, 9] {
        let folder = Folder::new();
        let mut journal = folder.journal();
        let (a, b, c) = (resource("a", "1", 30), resource("b", "1", 30), resource("c", "1", 30));
        journal.there(Kind::Address, &a);
        journal.there(Kind::Address, &b);
        journal.flush(0);
        let path = journal.path();
        drop(journal);
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        if cut == 1 {
            bytes[end - 5] ^= 1;
        } else {
            bytes.truncate(end - cut);
        }
        fs::write(&path, bytes).unwrap();
        let mut journal = folder.journal();
        assert_eq!(told(&journal), [Told::There(Kind::Address, a.clone())], "cut {cut}");
        journal.there(Kind::Address, &c);
        journal.flush(0);
        assert_eq!(
            told(&journal),
            [Told::There(Kind::Address, a), Told::There(Kind::Address, c)],
            "cut {cut}"
        );
    }
}

#[test]
fn garbage_is_nobodys_state() {
    let folder = Folder::new();
    fs::create_dir_all(&folder.0).unwrap();
    for bytes in
        [&b""[..], b"\n", b"\xff\xff", &[b'x'; 10_000], b"culvert discovery state 2 cluster=c node=n\n"]
    {
        fs::write(folder.journal().path(), bytes).unwrap();
        assert!(folder.journal().load(|_| panic!()).is_err());
    }
    // A length beyond everything after a right first line.
    fs::write(folder.journal().path(), [folder.journal().header.as_bytes(), &[0xff; 64]].concat()).unwrap();
    assert!(told(&folder.journal()).is_empty());
}

#[test]
fn a_file_that_is_mostly_out_of_date_is_written_anew() {
    let folder = Folder::new();
    let mut journal = folder.journal();
    journal.complete();
    journal.there(Kind::Address, &resource("kept", "1", 10));
    for n in 0..20 {
        journal.there(Kind::Address, &resource("large", &n.to_string(), 500_000));
        journal.gone(Kind::Address, &format!("gone-{n}"));
        journal.flush(500_000);
    }
    let size = fs::metadata(journal.path()).unwrap().len();
    assert!(size < 2 * SMALL, "{size}");
    let last: Vec<_> = told(&folder.journal()).into_iter().rev().collect();
    assert!(
        last.contains(&Told::Complete)
            && last.contains(&Told::There(Kind::Address, resource("kept", "1", 10)))
    );
    let large = last.iter().find(|told| matches!(told, Told::There(_, r) if r.name == "large"));
    assert_eq!(large, Some(&Told::There(Kind::Address, resource("large", "19", 500_000))));
}

#[test]
fn a_successors_changes_wait_until_the_folder_is_free() {
    let folder = Folder::new();
    let (mut old, mut new) = (folder.journal(), folder.journal());
    old.there(Kind::Address, &resource("a", "1", 3));
    old.flush(0);
    new.there(Kind::Address, &resource("b", "1", 3));
    new.flush(0);
    assert!(new.is_pending());
    assert_eq!(told(&old).len(), 1);
    drop(old);
    new.flush(0);
    assert!(!new.is_pending());
    assert_eq!(told(&new).len(), 2);
}

#[test]
fn a_folder_that_cannot_be_written_costs_nothing_but_the_next_start() {
    let folder = Folder::new();
    fs::write(&folder.0, "a file").unwrap();
    let mut journal = folder.journal();
    journal.there(Kind::Address, &resource("a", "1", 3));
    journal.flush(0);
    assert!(!journal.is_pending());
    journal.there(Kind::Address, &resource("a", "1", 3));
    assert!(!journal.is_pending(), "nothing is kept in memory either");
    fs::remove_file(&folder.0).unwrap();
}
