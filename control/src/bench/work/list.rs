//! Which works there are.

use super::{Kind, Work};

/// Bytes of a small answer's body.
const SMALL: u32 = 100;
/// Bytes of a larger one's.
const LARGE: u32 = 16 << 10;
/// Connections of an open loop: more than are ever busy at once unless something stalls.
const OPEN_CONNECTIONS: u32 = 32;

/// All works, in the order of tables.
pub fn all() -> Vec<Work> {
    let mut all = Vec::new();
    for (body, suffix) in [(SMALL, ""), (LARGE, "-16k")] {
        for connections in [1, 16, 64] {
            all.push(Work {
                name: format!("c{connections}{suffix}"),
                title: format!(
                    "HTTP/1.1 keep-alive, {}, {} body",
                    counted(connections, "connection"),
                    size(body)
                ),
                kind: Kind::Closed { connections, body },
            });
        }
    }
    for rate in [1_000, 5_000, 10_000] {
        all.push(Work {
            name: format!("open-{rate}"),
            title: format!("{rate} requests/s, whether or not they are answered"),
            kind: Kind::Open { rate, connections: OPEN_CONNECTIONS },
        });
    }
    all.push(Work {
        name: "new".to_owned(),
        title: "a new connection for each request, 16 at a time".to_owned(),
        kind: Kind::Connections { concurrency: 16 },
    });
    for (down, suffix, way) in [(false, "", "up"), (true, "-down", "down")] {
        for streams in [1, 4] {
            all.push(Work {
                name: format!("bulk{streams}{suffix}"),
                title: format!("bulk {way}, {}", counted(streams, "stream")),
                kind: Kind::Bulk { streams, down },
            });
        }
    }
    all.push(Work {
        name: "memory".to_owned(),
        title: "memory idle, with 1,000 idle connections, after load".to_owned(),
        kind: Kind::Memory { idle: 1_000 },
    });
    for (workloads, text) in [(0, "nothing else"), (2_000, "2,000 workloads"), (20_000, "20,000 workloads")] {
        all.push(Work {
            name: format!("start-{workloads}"),
            title: format!("start, and memory, with {text} known"),
            kind: Kind::Start { workloads },
        });
    }
    all
}

/// The works of a first answer in two minutes: one of each kind.
pub fn quick() -> Vec<Work> {
    let wanted = ["c64", "open-1000", "new", "bulk1", "start-0"];
    all().into_iter().filter(|work| wanted.contains(&work.name.as_str())).collect()
}

fn counted(number: u32, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn size(bytes: u32) -> String {
    if bytes >= 1 << 10 { format!("{} KiB", bytes >> 10) } else { format!("{bytes} B") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_quick_is_a_part() {
        let all = all();
        let names: BTreeSet<_> = all.iter().map(|work| work.name.clone()).collect();
        assert_eq!(names.len(), all.len());
        let quick = quick();
        assert_eq!(quick.len(), 5);
        assert!(quick.iter().all(|work| all.contains(work)));
    }

    #[test]
    fn titles_are_for_people() {
        let title = |name: &str| all().into_iter().find(|work| work.name == name).unwrap().title;
        assert_eq!(title("c1"), "HTTP/1.1 keep-alive, 1 connection, 100 B body");
        assert_eq!(title("c64-16k"), "HTTP/1.1 keep-alive, 64 connections, 16 KiB body");
        assert_eq!(title("bulk4-down"), "bulk down, 4 streams");
    }
}
