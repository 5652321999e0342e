use super::*;
use crate::net::netlink::frames;
use crate::net::rules::{CaptureSpec, ruleset};
use proptest::prelude::*;

/// Messages as text, a line each: kind, flags, number, family or resource, then the attributes as `number=value`; nested
/// ones in braces, text in quotes, other bytes in hexadecimal. A rule's expressions follow, a line each.
fn text(bytes: &[u8]) -> String {
    let mut out = String::new();
    for frame in frames(bytes) {
        let frame = frame.unwrap();
        let name = match frame.header.kind {
            BATCH_BEGIN => "begin",
            BATCH_END => "end",
            NEW_TABLE => "new-table",
            DELETE_TABLE => "delete-table",
            NEW_CHAIN => "new-chain",
            NEW_RULE => "new-rule",
            other => panic!("message {other:#x}"),
        };
        let (head, attributes) = frame.body.split_at(HEAD);
        let tree =
            tree(attributes).replace(" 1={1=\"", "\n  1={1=\"").replace("4={1={1=\"", "4={\n  1={1=\"");
        out +=
            format!("{name} {:#x} #{} {} {tree}", frame.header.flags, frame.header.seq, hex(head)).trim_end();
        out.push('\n');
    }
    out
}

fn tree(mut bytes: &[u8]) -> String {
    let mut parts = Vec::new();
    while let [a, b, c, d, ..] = *bytes {
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let value = &bytes[4..length];
        parts.push(match value {
            _ if kind & 0x8000 != 0 => format!("{}={{{}}}", kind & 0x7fff, tree(value)),
            [name @ .., 0] if name.len() > 1 && name.iter().all(u8::is_ascii_graphic) => {
                format!("{kind}={:?}", String::from_utf8_lossy(name))
            }
            _ => format!("{kind}={}", hex(value)),
        });
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    parts.join(" ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn batch(spec: &CaptureSpec) -> Vec<u8> {
    let mut batch = replacement(7, &ruleset(spec).unwrap());
    batch.close();
    batch.messages.bytes().to_vec()
}

// Values in the machine's order (marks, interface numbers) are written as on amd64 and arm64.

#[test]
fn the_default_rules_as_messages() {
    let seen = text(&batch(&CaptureSpec::default()));
    for (number, (seen, want)) in seen.lines().zip(include_str!("golden.txt").lines()).enumerate() {
        assert_eq!(seen, want, "line {}", number + 1);
    }
    assert_eq!(seen.lines().count(), include_str!("golden.txt").lines().count());
}

#[test]
fn rules_for_rerouted_interfaces_as_messages() {
    let reroute_interfaces = vec!["tap0".into()];
    let spec = CaptureSpec { ipv6: false, reroute_interfaces, dns_port: None, ..CaptureSpec::default() };
    let seen = text(&batch(&spec));
    let want = "\
new-rule 0xc01 #19 01000000 1=\"culvert-nat\" 2=\"prerouting\" 4={
  1={1=\"meta\" 2={2=0000000f 1=00000001}}
  1={1=\"cmp\" 2={1=00000001 2=00000000 3={1=02}}}
  1={1=\"meta\" 2={2=00000006 1=00000001}}
  1={1=\"cmp\" 2={1=00000001 2=00000000 3={1=74617030000000000000000000000000}}}
  1={1=\"meta\" 2={2=00000010 1=00000001}}
  1={1=\"cmp\" 2={1=00000001 2=00000000 3={1=06}}}
  1={1=\"counter\" 2={}}
  1={1=\"immediate\" 2={1=00000001 2={1=3a99}}}
  1={1=\"redir\" 2={1=00000001 2=00000001 3=00000002}}}
new-rule 0xc01 #20 01000000 1=\"culvert-nat\" 2=\"prerouting\" 4={
  1={1=\"meta\" 2={2=0000000f 1=00000001}}
  1={1=\"cmp\" 2={1=00000001 2=00000000 3={1=02}}}
  1={1=\"meta\" 2={2=00000006 1=00000001}}
  1={1=\"cmp\" 2={1=00000001 2=00000000 3={1=74617030000000000000000000000000}}}
  1={1=\"meta\" 2={2=00000010 1=00000001}}
  1={1=\"cmp\" 2={1=00000001 2=00000000 3={1=06}}}
  1={1=\"counter\" 2={}}
  1={1=\"immediate\" 2={1=00000000 2={2={1=fffffffb}}}}}
";
    assert!(seen.contains(want), "{seen}");
}

/// The rule that redirects outbound IPv4, byte for byte with its message header.
#[test]
fn one_whole_message() {
    let seen = batch(&CaptureSpec { ipv6: false, dns_port: None, ..CaptureSpec::default() });
    let mut bytes = seen.as_slice();
    let mut last = bytes;
    while let [a, b, c, d, ..] = *bytes {
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap();
        if bytes[4..6] == NEW_RULE.to_ne_bytes() {
            last = &bytes[..length];
        }
        bytes = &bytes[length..];
    }
    let want = [
        // Length, new-rule, flags (request, acknowledge, create, append), number, port; family inet.
        "3c020000060a050c1900000000000000",
        "01000000",
        // Table and chain.
        "1000010063756c766572742d6e617400",
        "0b0002006f757470757400000c020480",
        // meta nfproto; cmp 2
        "24000180090001006d6574610000000014000280080002000000000f0800010000000001",
        "2c00018008000100636d700020000280080001000000000108000200000000000c0003800500010002000000",
        // payload: network header, 16, 4 bytes; cmp != 127.0.0.1
        "340001800c0001007061796c6f61640024000280080001000000000108000200000000010800030000000010",
        "0800040000000004",
        "2c00018008000100636d700020000280080001000000000108000200000000010c000380080001007f000001",
        // meta l4proto; cmp 6
        "24000180090001006d657461000000001400028008000200000000100800010000000001",
        "2c00018008000100636d700020000280080001000000000108000200000000000c0003800500010006000000",
        // meta mark; & 0xfff; cmp != 0x539
        "24000180090001006d657461000000001400028008000200000000030800010000000001",
        "4c0001800c00010062697477697365003c000280080001000000000108000200000000010800030000000004",
        "08000600000000000c00048008000100ff0f00000c0005800800010000000000",
        "2c00018008000100636d700020000280080001000000000108000200000000010c0003800800010039050000",
        // counter; port 15001; redir
        "140001800c000100636f756e7465720004000280",
        "2c0001800e000100696d6d6564696174650000001800028008000100000000010c000280060001003a990000",
        "2c0001800a00010072656469720000001c000280080001000000000108000200000000010800030000000002",
    ];
    assert_eq!(hex(last), want.concat());
}

#[test]
fn every_rule_is_read_back_as_it_was_written() {
    let spec = CaptureSpec { reroute_interfaces: vec!["tap0".into()], ..CaptureSpec::default() };
    let bytes = batch(&spec);
    let read: Vec<Vec<Expr>> = frames(&bytes)
        .map(Result::unwrap)
        .filter(|frame| frame.header.kind == NEW_RULE)
        .map(|frame| read_rule(frame.body))
        .collect();
    let written: Vec<Vec<Expr>> = ruleset(&spec)
        .unwrap()
        .iter()
        .flat_map(|table| &table.chains)
        .flat_map(|chain| &chain.rules)
        .map(compile)
        .collect();
    assert_eq!(read, written);
}

fn element(expr: &Expr) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(Header { kind: 0, flags: 0, seq: 0 }, &[], |out| encode(expr, out));
    attrs(&writer.bytes()[16..]).next().unwrap().unwrap().value.to_vec()
}

fn exprs() -> impl Strategy<Value = Expr> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..17);
    prop_oneof![
        any::<u32>().prop_map(Expr::Meta),
        any::<u32>().prop_map(Expr::MetaSet),
        any::<u32>().prop_map(Expr::Ct),
        any::<u32>().prop_map(Expr::CtSet),
        any::<[u32; 3]>().prop_map(|[base, offset, length]| Expr::Payload { base, offset, length }),
        prop::collection::vec(any::<(u8, u8)>(), 1..17).prop_map(|pairs| {
            let (mask, xor) = pairs.into_iter().unzip();
            Expr::Bitwise { mask, xor }
        }),
        (any::<bool>(), bytes()).prop_map(|(not, value)| Expr::Cmp { not, value }),
        Just(Expr::Counter),
        bytes().prop_map(Expr::Immediate),
        any::<i32>().prop_map(Expr::Verdict),
        Just(Expr::Redirect),
        "[a-z]{8,12}".prop_filter("known", |name| name != "immediate").prop_map(Expr::Other),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(expr in exprs()) {
        prop_assert_eq!(decode(&element(&expr)), expr);
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        decode(&bytes);
        read_rule(&bytes);
        text_of(&bytes);
    }

    #[test]
    fn damaged_rules_are_read_without_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = batch(&CaptureSpec::default());
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for frame in frames(&bytes).map_while(Result::ok) {
            read_rule(frame.body);
            text_of(frame.body);
        }
    }
}

fn text_of(bytes: &[u8]) {
    let chain = ruleset(&CaptureSpec::default()).unwrap().remove(0).chains.remove(0);
    is_chain(bytes, &chain);
}
