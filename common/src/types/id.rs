//! Names of things: SPIFFE identities, workload UIDs, service and policy keys.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Identity that a certificate proves: URI SAN `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// **Shape**: trust domain of 1–255 characters out of `a-z 0-9 . - _`; namespace and service account of 1–253
/// characters out of `a-z A-Z 0-9 . - _`; no percent-encoding, query or fragment. Source: SPIFFE-ID §2.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: Arc<str>,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

/// The text is no SPIFFE identity of the form that a mesh workload has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no identity of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct NotASpiffeId(String);

impl SpiffeId {
    /// Identity of a service account.
    ///
    /// **Errors**: one of the parts is empty, too long or has a character that a SPIFFE id may not have.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, NotASpiffeId> {
        let name = |s: &str| {
            (1..=253).contains(&s.len())
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let domain = (1..=255).contains(&trust_domain.len())
            && trust_domain
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        if domain && name(namespace) && name(service_account) {
            Ok(Self {
                trust_domain: trust_domain.into(),
                namespace: namespace.into(),
                service_account: service_account.into(),
            })
        } else {
            let mut shown = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}");
            truncate(&mut shown);
            Err(NotASpiffeId(shown))
        }
    }

    /// Trust domain, for example `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Namespace of the service account.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Name of the service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// Its parts, to be replaced by equal ones.
    pub(crate) fn texts_mut(&mut self) -> [&mut Arc<str>; 3] {
        [&mut self.trust_domain, &mut self.namespace, &mut self.service_account]
    }

    /// The identity without `spiffe://`, the form in which policies name principals.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// An error text must not carry kilobytes that a peer chose.
fn truncate(text: &mut String) {
    if text.len() > 200 {
        let end = (0..=200).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

impl FromStr for SpiffeId {
    type Err = NotASpiffeId;

    fn from_str(uri: &str) -> Result<Self, NotASpiffeId> {
        let parts: Vec<&str> = uri.strip_prefix("spiffe://").unwrap_or("").splitn(6, '/').collect();
        match parts[..] {
            [domain, "ns", ns, "sa", sa] => Self::new(domain, ns, sa),
            _ => {
                let mut shown = uri.to_owned();
                truncate(&mut shown);
                Err(NotASpiffeId(shown))
            }
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// Primary key of a workload, in istiod's form, for example `Kubernetes//Pod/shop/cart-0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(pub Arc<str>);

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Primary key of a service: namespace and fully qualified host name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace of the object that defines the service.
    pub namespace: Arc<str>,
    /// Host name, for example `cart.shop.svc.cluster.local`.
    pub hostname: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// Primary key of an authorization policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// Namespace of the policy.
    pub namespace: Arc<str>,
    /// Name of the policy.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_round_trips_and_anything_else_is_refused() {
        let text = "spiffe://cluster.local/ns/shop/sa/cart";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/cart");
        for bad in [
            "",
            "spiffe://",
            "spiffe://cluster.local/ns//sa/cart",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe:///ns/shop/sa/cart",
            "spiffe://cluster.local/ns/shop/sa/cart/x",
            "spiffe://cluster.local/ns/shop/sa/cart/",
            "spiffe://cluster.local/ns/sh%6ep/sa/cart",
            "spiffe://cluster.local/ns/shop/sa/cart?x",
            "spiffe://cluster.local/ns/shop/sa/cart#x",
            "spiffe://cluster.local/ns/shop/sa/ca\0rt",
            "spiffe://cluster.local/ns/shop/sa/cart\n",
            "SPIFFE://cluster.local/ns/shop/sa/cart",
            "spiffe://Cluster.local/ns/shop/sa/cart",
            "spiffe://cluster.local:80/ns/shop/sa/cart",
            "https://cluster.local/ns/shop/sa/cart",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?}");
        }
        let long = format!("spiffe://cluster.local/ns/{}/sa/x", "n".repeat(4096));
        assert!(long.parse::<SpiffeId>().unwrap_err().to_string().len() < 400);
    }
}
