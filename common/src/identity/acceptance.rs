//! Which peers are accepted, beside what their chains say: trust domains of one mesh, and what was revoked.

use std::sync::Arc;

use super::crl::Revocation;
use crate::types::SpiffeId;

/// What a mesh accepts; the default accepts its own trust domain only and knows no revocation.
#[derive(Clone, Debug, Default)]
pub struct Acceptance {
    /// Trust domains that are the same mesh as one's own: a mesh that is renamed has two for a while.
    pub aliases: Arc<[Arc<str>]>,
    /// Lists by which peers' chains are checked.
    pub revocation: Option<Arc<Revocation>>,
}

impl Acceptance {
    /// Whether `domain` is `own` or another name of it.
    pub(super) fn is_own(&self, own: &str, domain: &str) -> bool {
        domain == own || self.aliases.iter().any(|alias| **alias == *domain)
    }

    /// Whether `got` is one of `expected`, for a workload of trust domain `own`. Of several names of one mesh a peer may
    /// prove any.
    pub(super) fn is_expected(&self, own: &str, got: &SpiffeId, expected: &[SpiffeId]) -> bool {
        let same = |want: &SpiffeId| {
            got.namespace() == want.namespace()
                && got.service_account() == want.service_account()
                && self.is_own(own, want.trust_domain())
        };
        expected.contains(got)
            || !self.aliases.is_empty() && self.is_own(own, got.trust_domain()) && expected.iter().any(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_stands_for_the_own_trust_domain_and_for_nothing_else() {
        let aliases: Arc<[Arc<str>]> = ["old.example".into()].into();
        let accepts = Acceptance { aliases, revocation: None };
        let id = |text: &str| text.parse::<SpiffeId>().unwrap();
        let [new, old, third, other] =
            ["new.example", "old.example", "third.example", "new.example"].map(str::to_owned);
        let of = |domain: &str, account: &str| id(&format!("spiffe://{domain}/ns/shop/sa/{account}"));
        for (got, want, accepted) in [
            (of(&new, "a"), of(&new, "a"), true),
            (of(&old, "a"), of(&new, "a"), true),
            (of(&new, "a"), of(&old, "a"), true),
            (of(&old, "a"), of(&old, "a"), true),
            (of(&old, "b"), of(&new, "a"), false),
            (of(&third, "a"), of(&new, "a"), false),
            (of(&old, "a"), of(&third, "a"), false),
            (of(&third, "a"), of(&third, "a"), true), // asked for by its full name
            (id("spiffe://old.example/ns/other/sa/a"), of(&other, "a"), false),
        ] {
            assert_eq!(
                accepts.is_expected("new.example", &got, std::slice::from_ref(&want)),
                accepted,
                "{got} for {want}"
            );
        }
        assert!(!Acceptance::default().is_expected("new.example", &of(&old, "a"), &[of(&new, "a")]));
    }
}
