//! What holds for any answer to a netlink request.

use culvert_common::net::netlink::{attrs, find_attr, frames};
use culvert_common::net::nft::read_rule;

/// Frames and attributes end, lie within the bytes, and are the same when read again.
pub(crate) fn answers(bytes: &[u8]) {
    let mut total = 0;
    for frame in frames(bytes) {
        let Ok(frame) = frame else { break };
        total += 16 + frame.body.len();
        assert!(total <= bytes.len(), "frames longer than the bytes");
        let _rule = read_rule(frame.body);
    }
    let mut total = 0;
    for attr in attrs(bytes) {
        let Ok(attr) = attr else { break };
        total += 4 + attr.value.len();
        assert!(total <= bytes.len(), "attributes longer than the bytes");
        let _values = (attr.u32(), attr.be32(), attr.text());
        assert!(find_attr(bytes, attr.kind).is_some(), "an attribute that is there is not found");
        let _nested = attrs(attr.value).take_while(Result::is_ok).count();
    }
    let _rule = read_rule(bytes);
}
