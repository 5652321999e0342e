//! Which address of a destination that is found by name. Decides nothing else.

use std::net::IpAddr;

/// One of them at random, of the wanted family if there is one.
pub(super) fn one_of(addresses: &[IpAddr], is_v4: bool, pick: u64) -> Option<IpAddr> {
    let wanted = addresses.iter().filter(|ip| ip.is_ipv4() == is_v4);
    let count = wanted.clone().count() as u64;
    let index = |count: u64| Some(pick.checked_rem(count)? as usize);
    match index(count) {
        Some(n) => wanted.copied().nth(n),
        None => addresses.get(index(addresses.len() as u64)?).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_wanted_family_is_taken() {
        let ips = ["10.0.0.1", "fd00::1", "10.0.0.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let picked = |is_v4, pick| one_of(&ips, is_v4, pick).unwrap().to_string();
        assert_eq!([picked(true, 0), picked(true, 1), picked(true, 2)], ["10.0.0.1", "10.0.0.2", "10.0.0.1"]);
        assert_eq!(picked(false, 7), "fd00::1");
        let v4 = ips.get(..1).unwrap();
        assert_eq!(one_of(v4, false, 3), v4.first().copied(), "any is better than none");
        assert_eq!(one_of(&[], true, 0), None);
    }
}
