//! What an asked name may stand for, in the order in which it is tried.
//!
//! **Source**: l4.md §8. A resolver in a pod appends its search domains and asks once for each; a name that the mesh knows
//! is answered at the first of these, whatever follows. The search list taken as the pod's is that which Kubernetes gives
//! to every pod: only what it would have appended itself is ever taken off. A pod's own search domains need nothing here:
//! who does not know such a name says so, and the resolver asks for the next.

/// One name to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The name.
    pub name: String,
    /// The asked name less a search domain, where it is that; an answer then says that the asked name is this one.
    pub stripped: Option<String>,
}

/// All names that `asked` may stand for to a pod of `namespace`, the likeliest first; wildcards not among them.
///
/// `asked` and `domain` in lower case, without a dot at the end.
pub fn candidates(asked: &str, namespace: &str, domain: &str) -> Vec<Candidate> {
    let mut found = Vec::with_capacity(8);
    expand(asked, None, namespace, domain, &mut found);
    let svc = format!("svc.{domain}");
    for search in [format!("{namespace}.{svc}"), svc, domain.to_owned()] {
        let rest = asked.strip_suffix(search.as_str()).and_then(|rest| rest.strip_suffix('.'));
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            expand(rest, Some(rest), namespace, domain, &mut found);
        }
    }
    found
}

/// `name` and the forms of it that Kubernetes has.
fn expand(name: &str, stripped: Option<&str>, namespace: &str, domain: &str, found: &mut Vec<Candidate>) {
    let mut add = |name: String| {
        if !found.iter().any(|known| known.name == name) {
            found.push(Candidate { name, stripped: stripped.map(str::to_owned) });
        }
    };
    add(name.to_owned());
    let ends_in_svc = name.ends_with(".svc");
    match name.split('.').count() {
        1 => add(format!("{name}.{namespace}.svc.{domain}")),
        2 => {
            add(format!("{name}.svc.{domain}"));
            add(format!("{name}.{namespace}.svc.{domain}"));
        }
        3 => {
            if ends_in_svc {
                add(format!("{name}.{domain}"));
            }
            add(format!("{name}.svc.{domain}"));
        }
        4 if ends_in_svc => add(format!("{name}.{domain}")),
        _ => {}
    }
}

/// `*.rest` for each rest of `name`, the longest first.
pub(super) fn wildcards(name: &str) -> impl Iterator<Item = String> {
    name.match_indices('.').filter_map(|(at, _)| name.get(at..)).map(|rest| format!("*{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(asked: &str) -> Vec<String> {
        candidates(asked, "ns1", "cluster.local").into_iter().map(|one| one.name).collect()
    }

    #[test]
    fn names_are_expanded_as_kubernetes_does() {
        for (asked, want) in [
            ("a", &["a", "a.ns1.svc.cluster.local"][..]),
            ("a.b", &["a.b", "a.b.svc.cluster.local", "a.b.ns1.svc.cluster.local"]),
            ("a.b.svc", &["a.b.svc", "a.b.svc.cluster.local", "a.b.svc.svc.cluster.local"]),
            ("p.a.b", &["p.a.b", "p.a.b.svc.cluster.local"]),
            ("p.a.b.svc", &["p.a.b.svc", "p.a.b.svc.cluster.local"]),
            ("www.a.example.com", &["www.a.example.com"]),
        ] {
            assert_eq!(names(asked), want, "{asked}");
        }
    }

    #[test]
    fn search_domains_are_taken_off_and_what_is_left_is_expanded() {
        let found = candidates("example.com.ns1.svc.cluster.local", "ns1", "cluster.local");
        let (plain, stripped): (Vec<_>, Vec<_>) = found.iter().partition(|one| one.stripped.is_none());
        assert_eq!(plain.len(), 1);
        let of = |name: &str| stripped.iter().find(|one| one.name == name).unwrap().stripped.clone().unwrap();
        assert_eq!(of("example.com"), "example.com");
        assert_eq!(of("example.com.ns1"), "example.com.ns1");
        assert_eq!(of("example.com.ns1.svc"), "example.com.ns1.svc");
        // As much as a search domain, and nothing before it.
        assert_eq!(names("ns1.svc.cluster.local").first().unwrap(), "ns1.svc.cluster.local");
        assert!(
            candidates("a.ns2.svc.cluster.local", "ns1", "cluster.local")
                .iter()
                .all(|one| one.stripped.as_deref() != Some("a"))
        );
        assert!(names("acluster.local").iter().all(|name| name != "a"));
    }

    #[test]
    fn wildcards_go_from_specific_to_general() {
        assert_eq!(wildcards("a.b.c").collect::<Vec<_>>(), ["*.b.c", "*.c"]);
        assert_eq!(wildcards("a").count(), 0);
    }
}
