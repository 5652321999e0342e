//! Services by ranges of virtual addresses. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::Service;

/// Services by range. One probe for each length of prefix that occurs, none where no service has a range.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    services: HashMap<IpNet, Vec<Arc<Service>>>,
    /// Lengths that occur among IPv4 ranges, the longest first.
    v4: Vec<u8>,
    /// The same of IPv6.
    v6: Vec<u8>,
}

impl Ranges {
    pub(super) fn add(&mut self, range: IpNet, service: &Arc<Service>) {
        let range = range.trunc();
        let lengths = if range.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        if let Err(place) = lengths.binary_search_by_key(&Reverse(range.prefix_len()), |len| Reverse(*len)) {
            lengths.insert(place, range.prefix_len());
        }
        self.services.entry(range).or_default().push(Arc::clone(service));
    }

    /// Ranges that hold `ip`, each with its services, the narrowest first.
    pub(super) fn holding(&self, ip: IpAddr) -> impl Iterator<Item = (u8, &Arc<Service>)> {
        let lengths = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths.iter().flat_map(move |len| {
            let range = IpNet::new(ip, *len).ok().map(|net| net.trunc());
            let services = range.and_then(|range| self.services.get(&range));
            services.into_iter().flatten().map(move |service| (*len, service))
        })
    }

    /// Of the services that hold `ip` and are `visible`: of this namespace, then with the narrowest range, then the
    /// canonical one, then the first. **Source**: l4.md §4.6.
    pub(super) fn find<'a>(
        &'a self,
        ip: IpAddr,
        namespace: &str,
        visible: impl Fn(&&'a Arc<Service>) -> bool,
    ) -> Option<&'a Arc<Service>> {
        let seen = self.holding(ip).filter(|(_, service)| visible(service));
        let rank = |(len, s): &(u8, &Arc<Service>)| (&*s.key.namespace == namespace, *len, s.canonical);
        // The first of those with the highest rank.
        seen.min_by_key(|one| Reverse(rank(one))).map(|(_, service)| service)
    }
}
