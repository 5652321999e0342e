//! The client that trusted proxies before the mesh name.
//!
//! **Source**: Envoy, `x-forwarded-for` and `xff_num_trusted_hops`; who is believed is a setting of ours.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address that the outermost of `hops` trusted proxies saw: so many from the end of `x-forwarded-for`.
///
/// None if there are fewer, or if it is no address; anything before it was written by who is not trusted.
pub fn forwarded_for(headers: &HeaderMap, hops: u32) -> Option<IpAddr> {
    let before = usize::try_from(hops.checked_sub(1)?).ok()?;
    let lines: Vec<&str> =
        headers.get_all(FORWARDED_FOR).iter().map(|line| line.to_str()).collect::<Result<_, _>>().ok()?;
    let address = lines.iter().flat_map(|line| line.split(',')).rev().nth(before)?;
    address.trim().parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::fixtures::asked;

    #[test]
    fn the_address_is_counted_from_the_end() {
        for (lines, hops, want) in [
            (&["192.0.2.1"][..], 1, Some("192.0.2.1")),
            (&["192.0.2.1, 192.0.2.2"], 1, Some("192.0.2.2")),
            (&["192.0.2.1,192.0.2.2"], 2, Some("192.0.2.1")),
            (&["192.0.2.1", "2001:db8::2"], 1, Some("2001:db8::2")),
            (&["192.0.2.1", "2001:db8::2"], 2, Some("192.0.2.1")),
            (&["::ffff:192.0.2.1"], 1, Some("192.0.2.1")),
            (&["192.0.2.1"], 2, None),
            (&["192.0.2.1"], 0, None),
            (&["192.0.2.1, unknown"], 1, None),
            (&["192.0.2.1:80"], 1, None),
            (&[""], 1, None),
            (&[], 1, None),
        ] {
            let request = lines
                .iter()
                .fold(asked("GET /"), |request, line| request.with(&format!("x-forwarded-for: {line}")));
            let want = want.map(|ip| ip.parse::<IpAddr>().unwrap());
            assert_eq!(forwarded_for(&request.headers, hops), want, "{lines:?} {hops}");
        }
    }
}
